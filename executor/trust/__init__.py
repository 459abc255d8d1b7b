"""Where trust comes from, behind one port."""

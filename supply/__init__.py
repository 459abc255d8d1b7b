"""What this project is made of: locked versions, known advisories, the list of what is inside."""

// Any NATS client can ask for a task: a header with an id, a body, and a subscription.
import { connect, headers } from "@nats-io/transport-node";

const [url, id, text] = process.argv.slice(2);
const nc = await connect({ servers: url });
const answers = nc.subscribe(`stored.*.acme.*.${id}`, { max: 1 });
await nc.flush();

const asked = headers();
asked.set("Task-Id", id);
asked.set("Content-Type", "text/plain");
nc.publish("task.acme.wordcount", text, { headers: asked });

for await (const message of answers) {
  console.log(JSON.stringify({
    subject: message.subject,
    holds: new TextDecoder("latin1").decode(message.data),
  }));
}
await nc.close();

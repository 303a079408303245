// Shows messages as they arrive: a temporary queue bound to an exchange, until Ctrl-C. It reads only WAYBILL_BROKER_URL.
//   node deploy/demo/listen.mjs [exchange] [binding key]
import { connect } from 'amqplib';

const [exchange = 'waybill.events', bindingKey = '#'] = process.argv.slice(2);
const url = process.env.WAYBILL_BROKER_URL;
if (!url) end('WAYBILL_BROKER_URL is not set, for example to amqp://guest:guest@localhost:5672');

try {
  const connection = await connect(url, { timeout: 10_000 });
  connection.on('error', () => undefined);
  connection.on('close', () => end('RabbitMQ closed the connection.'));
  const channel = await connection.createChannel();
  channel.on('error', (error) => end(error.message));
  if (exchange === 'waybill.events') await channel.assertExchange(exchange, 'topic', { durable: true });
  const { queue } = await channel.assertQueue('', { exclusive: true });
  await channel.bindQueue(queue, exchange, bindingKey);
  await channel.consume(queue, (message) => message && show(message), { noAck: true });
  say(`Listening to ${exchange} for ${bindingKey}; Ctrl-C ends it.`);
} catch (error) {
  // Why not the whole error: Node.js puts the URL with its password into that of an invalid one.
  end(`RabbitMQ cannot be used: ${error.code ?? error.message}`);
}

function show({ fields, properties, content }) {
  say(`${fields.routingKey}  id ${properties.messageId}  ${content.toString('utf8').slice(0, 2000)}`);
}

/** Control characters of a stranger's message must not reach the terminal. */
function say(text) {
  process.stdout.write(`${text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, ' ')}\n`);
}

function end(text) {
  say(text);
  process.exit(1);
}

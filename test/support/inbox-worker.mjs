// An application's worker as a process of its own: adds each message of a consumer to the table `ledger`.
import pg from 'pg';
import { InboxWorker } from 'waybill/client';

const { DATABASE_URL, CONSUMER, LEASE_MS = '1000' } = process.env;
const concurrency = 4;
const pool = new pg.Pool({
  connectionString: DATABASE_URL,
  max: concurrency + 1,
  application_name: `worker ${process.pid}`,
});
pool.on('error', () => undefined);
const say = (line) => process.stdout.write(`${line}\n`);

const worker = new InboxWorker({
  pool,
  consumer: CONSUMER,
  concurrency,
  leaseMs: Number(LEASE_MS),
  pollMs: 50,
  async handle(message, client) {
    say(`handling ${message.messageId}`);
    await client.query('insert into ledger (message_id, key, seq) values ($1, $2, $3)', [
      message.messageId,
      message.key,
      String(message.seq),
    ]);
  },
  onEvent: ({ kind, error }) => say(`${kind} ${error instanceof Error ? error.message : ''}`),
});

process.once('SIGTERM', () => {
  void worker
    .stop()
    .then(({ left }) => say(`stopped, left ${left}`))
    .then(() => pool.end());
});
await worker.start();
say('started');

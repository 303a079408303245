import { startPostgres } from '../support/servers/postgres.js';
import { startRabbit } from '../support/servers/rabbit.js';

// Owns a pair of servers until it is killed; the test looks at what stays behind.
const [postgres, rabbit] = await Promise.all([startPostgres({ own: true }), startRabbit({ own: true })]);
if (process.argv[2] === 'frozen') await Promise.all([postgres.pause(), rabbit.pause()]);
process.stdout.write(`${JSON.stringify({ postgres: postgres.port, rabbit: rabbit.port })}\n`);
setInterval(() => undefined, 60_000);

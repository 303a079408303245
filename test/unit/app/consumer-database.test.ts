import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { expect, it } from 'vitest';
import { ConsumerDatabase } from '../../../src/app/consumer-database.js';
import type { Config } from '../../../src/config/load.js';

it('F20 a connection that is lost between the login and its settings is an error of that piece of work, no more', async () => {
  const authenticationOk = Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 0]);
  const readyForQuery = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.once('data', () => {
      socket.write(Buffer.concat([authenticationOk, readyForQuery]));
      socket.once('data', () => socket.destroy());
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const settings = {
    url: `postgres://user:secret@127.0.0.1:${port}/shop`,
    schema: 'waybill',
    tls: { mode: 'insecure-plaintext' },
  } as unknown as Config['database'];
  const database = new ConsumerDatabase({ settings: () => settings, name: 'test', statementTimeoutMs: 1_000 });
  await expect(database.use('asking', (client) => client.query('select 1'))).rejects.toMatchObject({
    code: 'WAYBILL_DATABASE_UNAVAILABLE',
  });
  database.close();
  server.close();
});

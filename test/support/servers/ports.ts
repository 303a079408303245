import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';

/** Ports on 127.0.0.1 that are free at this moment, all different; whoever uses them must expect to lose a race. */
export async function freePorts(count: number): Promise<number[]> {
  const holders = await Promise.all(
    Array.from({ length: count }, async () => {
      const server = createServer().listen(0, '127.0.0.1');
      await once(server, 'listening');
      return server;
    }),
  );
  const ports = holders.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(holders.map((server) => once(server.close(), 'close')));
  return ports;
}

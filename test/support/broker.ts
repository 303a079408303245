import { randomBytes } from 'node:crypto';
import { inject } from 'vitest';
import { borrowRabbit } from './servers/rabbit.js';
import type { RabbitServer } from './servers/rabbit-server.js';

/** A virtual host that belongs to one test file. */
export interface FreshVhost {
  name: string;
  url: string;
  server: RabbitServer;
  /** Deletes it with all in it and closes its connections. */
  drop(): Promise<void>;
}

/** The RabbitMQ that the run shares: for virtual hosts of one's own, never for faults. */
export function sharedRabbit(): RabbitServer {
  const { brokerUrl, brokerNode } = inject('servers');
  return borrowRabbit(brokerUrl, brokerNode ?? undefined);
}

/** Makes a virtual host for one test file (about 0.25 s), on the shared broker or on the given one. */
export async function freshVhost(server: RabbitServer = sharedRabbit()): Promise<FreshVhost> {
  const name = `waybill-test-${inject('servers').runId}-${randomBytes(5).toString('hex')}`;
  await server.addVhost(name);
  return { name, url: server.url(name), server, drop: () => server.deleteVhost(name) };
}

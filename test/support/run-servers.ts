import { randomBytes } from 'node:crypto';
import pg from 'pg';
import type { TestProject } from 'vitest/node';
import type { RabbitNode } from './servers/rabbit-control.js';
import { startPostgres } from './servers/postgres.js';
import type { PostgresServer } from './servers/postgres-server.js';
import type { RabbitServer } from './servers/rabbit-server.js';
import { startRabbit } from './servers/rabbit.js';

/** What a run of the tests shares with its files: plain data, because they run in other processes. */
export interface RunServers {
  /** Marks the databases and virtual hosts of this run. */
  runId: string;
  postgresUrl: string;
  brokerUrl: string;
  /** How to administer the private broker; null when it is borrowed. */
  brokerNode: RabbitNode | null;
}

declare module 'vitest' {
  export interface ProvidedContext {
    servers: RunServers;
  }
}

interface Shared {
  users: number;
  starting: Promise<{ postgres: PostgresServer; rabbit: RabbitServer; provided: RunServers }>;
}

// Why on globalThis: each vitest project loads this file anew, and one run has one pair of servers.
const place = globalThis as { waybillRunServers?: Shared | undefined };

/** Vitest's global set-up of the projects that need servers: starts the shared pair, or borrows the offered ones. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const shared = (place.waybillRunServers ??= { users: 0, starting: start() });
  shared.users++;
  project.provide('servers', (await shared.starting).provided);
  return async () => {
    shared.users--;
    if (shared.users > 0) return;
    place.waybillRunServers = undefined;
    const { postgres, rabbit, provided } = await shared.starting;
    if (!postgres.private) await dropDatabases(postgres, provided.runId);
    await Promise.all([postgres.close(), rabbit.close()]);
  };
}

async function start(): Promise<{ postgres: PostgresServer; rabbit: RabbitServer; provided: RunServers }> {
  const [postgres, rabbit] = await Promise.allSettled([startPostgres(), startRabbit()]);
  if (postgres.status === 'rejected' || rabbit.status === 'rejected') {
    const errors: unknown[] = [];
    for (const result of [postgres, rabbit]) {
      if (result.status === 'fulfilled') await result.value.close();
      else errors.push(result.reason);
    }
    throw new Error(`The servers for the tests cannot be had.\n${errors.map(String).join('\n')}`);
  }
  const provided = {
    runId: randomBytes(4).toString('hex'),
    postgresUrl: postgres.value.url(),
    brokerUrl: rabbit.value.url(),
    brokerNode: rabbit.value.node ?? null,
  };
  return { postgres: postgres.value, rabbit: rabbit.value, provided };
}

async function dropDatabases(postgres: PostgresServer, runId: string): Promise<void> {
  const client = new pg.Client({ connectionString: postgres.url() });
  await client.connect();
  try {
    const { rows } = await client.query<{ datname: string }>('select datname from pg_database where datname like $1', [
      `waybill\\_test\\_${runId}\\_%`,
    ]);
    for (const row of rows) await postgres.dropDatabase(row.datname);
  } finally {
    await client.end();
  }
}

import { execFile } from 'node:child_process';
import { chown, mkdir, realpath } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { until } from '../waiting.js';
import { Daemon } from './daemon.js';
import { findPostgres, postgresAccount } from './find-postgres.js';
import { freePorts } from './ports.js';
import type { PostgresServer } from './postgres-server.js';
import { Scratch } from './scratch.js';

const run = promisify(execFile);

/** A streaming standby of a private server. */
export interface Standby {
  readonly port: number;
  /** The URL of the primary with this server's port. */
  url(database?: string): string;
  /** Makes it a primary of the next timeline; resolves when it takes writes. */
  promote(): Promise<void>;
  /** Stops it at once and removes its folder. */
  close(): Promise<void>;
}

/** Copies a private primary with pg_basebackup, which the embedded package lacks, and starts the copy as its standby. */
export async function startStandby(primary: PostgresServer): Promise<Standby> {
  const scratch = await Scratch.open();
  try {
    const account = await postgresAccount();
    const programs = await findPostgres(scratch, account, 'installed');
    // PATH may have links to some of the programs only.
    const folder = dirname(await realpath(join(programs.folder, 'postgres')));
    const data = scratch.path('data');
    await mkdir(data, { mode: 0o700 });
    if (account.uid !== undefined) await chown(data, account.uid, account.gid!);
    const args = ['-D', data, '-d', primary.url(), '-R', '-X', 'stream', '-c', 'fast', '--no-sync'];
    await run(join(folder, 'pg_basebackup'), args, { ...account, cwd: scratch.folder });
    const [port] = await freePorts(1);
    await Daemon.start(scratch, {
      command: join(folder, 'postgres'),
      args: ['-D', data, '-p', String(port)],
      env: { PATH: process.env.PATH, LC_ALL: 'C' },
      logFile: scratch.path('postgres.log'),
      account,
    });
    const url = (database?: string): string => {
      const changed = new URL(primary.url(database));
      changed.port = String(port);
      return changed.href;
    };
    await until(() => ask<boolean>(url(), 'select pg_is_in_recovery() as answer'), {
      what: 'the standby to answer',
      withinMs: 30_000,
      everyMs: 100,
    });
    return {
      port: port!,
      url,
      promote: async () => {
        await ask(url(), 'select pg_promote() as answer');
        await until(async () => !(await ask<boolean>(url(), 'select pg_is_in_recovery() as answer')), {
          what: 'the standby to be a primary',
        });
      },
      close: () => scratch.remove(),
    };
  } catch (error) {
    await scratch.remove();
    throw error;
  }
}

async function ask<T>(url: string, sql: string): Promise<T | undefined> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => undefined);
  await client.connect();
  try {
    return (await client.query<{ answer: T }>(sql)).rows[0]?.answer;
  } finally {
    await client.end();
  }
}

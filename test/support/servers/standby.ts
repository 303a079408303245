import { execFile } from 'node:child_process';
import { appendFile, chown, mkdir, realpath, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { until } from '../waiting.js';
import { Daemon, type Account } from './daemon.js';
import { findPostgres, postgresAccount } from './find-postgres.js';
import { freePorts } from './ports.js';
import { withClient, type PostgresServer } from './postgres-server.js';
import { Scratch } from './scratch.js';

const run = promisify(execFile);

/** A streaming standby of a private server. */
export interface Standby {
  readonly port: number;
  /** The URL of the primary with this server's port. */
  url(database?: string): string;
  /** Makes it a primary of the next timeline; resolves when it takes writes. */
  promote(): Promise<void>;
  /** Waits until it has replayed everything that the primary has written by now. */
  caughtUp(): Promise<void>;
  /** Ends its stream for good: what the primary writes from here on never comes. */
  detach(): Promise<void>;
  /** Stops it at once and removes its folder. */
  close(): Promise<void>;
}

/** How to make a standby. */
export interface StandbyOptions {
  /** Whether it has the primary's programs, or those of the installed server (the default). */
  version?: 'installed' | 'embedded';
  /** Lines for its postgresql.conf, over those of the primary. `cluster_name` is its name in pg_stat_replication. */
  settings?: Record<string, string>;
}

/** Copies a private primary and starts the copy as its standby. */
export async function startStandby(primary: PostgresServer, options: StandbyOptions = {}): Promise<Standby> {
  const { version = 'installed', settings = {} } = options;
  const scratch = await Scratch.open();
  try {
    const account = await postgresAccount();
    const programs = await findPostgres(scratch, account, version);
    // PATH may have links to some of the programs only.
    const folder = dirname(await realpath(join(programs.folder, 'postgres')));
    const data = scratch.path('data');
    await mkdir(data, { mode: 0o700 });
    if (account.uid !== undefined) await chown(data, account.uid, account.gid!);
    const copy = version === 'embedded' ? copyFiles : copyByProgram;
    await copy(primary, { data, account, scratch, folder });
    const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'\n`);
    await appendFile(join(data, 'postgresql.conf'), `\n${lines.join('')}`);
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
      caughtUp: async () => {
        const upTo = await ask<string>(primary.url(), 'select pg_current_wal_insert_lsn()::text as answer');
        await until(() => ask<boolean>(url(), `select pg_last_wal_replay_lsn() >= '${upTo}' as answer`), {
          what: `the standby to have replayed up to ${upTo}`,
          withinMs: 30_000,
        });
      },
      detach: async () => {
        await ask(url(), "alter system set primary_conninfo = ''");
        await ask(url(), 'select pg_reload_conf() as answer');
        await until(() => ask<boolean>(url(), 'select not exists (select from pg_stat_wal_receiver) as answer'), {
          what: 'the standby to receive no more',
          withinMs: 30_000,
        });
      },
      close: () => scratch.remove(),
    };
  } catch (error) {
    await scratch.remove();
    throw error;
  }
}

interface Copy {
  data: string;
  account: Account;
  scratch: Scratch;
  /** Of the programs. */
  folder: string;
}

async function copyByProgram(primary: PostgresServer, { data, account, scratch, folder }: Copy): Promise<void> {
  const args = ['-D', data, '-d', primary.url(), '-R', '-X', 'stream', '-c', 'fast', '--no-sync'];
  await run(join(folder, 'pg_basebackup'), args, { ...account, cwd: scratch.folder });
}

/** As pg_basebackup does it, which the embedded package lacks; the log comes by streaming, from the backup's start. */
async function copyFiles(primary: PostgresServer, { data, account }: Copy): Promise<void> {
  await withClient(primary.url(), async (client) => {
    const { rows } = await client.query<{ folder: string }>(
      "select current_setting('data_directory') as folder, pg_backup_start('standby', true)",
    );
    await run('cp', ['-a', `${rows[0]!.folder}/.`, data]);
    const done = await client.query<{ labelfile: string }>('select labelfile from pg_backup_stop(false)');
    await Promise.all([
      rm(join(data, 'postmaster.pid')),
      ...['pg_wal', 'pg_replslot', 'pg_dynshmem'].map(async (name) => {
        await rm(join(data, name), { recursive: true });
        await mkdir(join(data, name), { mode: 0o700 });
        if (account.uid !== undefined) await chown(join(data, name), account.uid, account.gid!);
      }),
      writeFile(join(data, 'backup_label'), done.rows[0]!.labelfile),
      writeFile(join(data, 'standby.signal'), ''),
      // Further settings in it count over this one.
      appendFile(join(data, 'postgresql.conf'), `\nprimary_conninfo = '${primary.url()}'\n`),
    ]);
    if (account.uid !== undefined) {
      for (const name of ['backup_label', 'standby.signal']) await chown(join(data, name), account.uid, account.gid!);
    }
  });
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

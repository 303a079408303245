import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { appendFile, chown, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { until } from '../waiting.js';
import { allGone, Daemon, PortClash, type Account } from './daemon.js';
import { findPostgres, postgresAccount, type PostgresPrograms } from './find-postgres.js';
import { freePorts } from './ports.js';
import { PostgresUrls, type PostgresServer, type ShutdownMode } from './postgres-server.js';
import { Scratch } from './scratch.js';

const run = promisify(execFile);

/** How to start a PostgreSQL server. */
export interface PostgresOptions {
  /** Demands Debian's or Homebrew's server, or the npm package; without it, installed is preferred. */
  version?: 'installed' | 'embedded';
  /** Whether commits survive `kill9` of the machine: fsync and full_page_writes (default false, which is faster). */
  durable?: boolean;
  /** Further lines of postgresql.conf, over ours. */
  settings?: Record<string, string | number | boolean>;
  /** Starts a server of its own even where WAYBILL_TEST_DATABASE_URL offers one, for tests that stop or kill it. */
  own?: boolean;
}

/**
 * Starts a private PostgreSQL with wal_level=logical on a free port of 127.0.0.1, or borrows the one that
 * WAYBILL_TEST_DATABASE_URL names. The private one is stopped and removed by `close`, and also when this process dies.
 */
export async function startPostgres(options: PostgresOptions = {}): Promise<PostgresServer> {
  const offered = process.env.WAYBILL_TEST_DATABASE_URL;
  if (offered && !options.own && !options.version) return borrowPostgres(offered);
  const scratch = await Scratch.open();
  try {
    const account = await postgresAccount();
    const programs = await findPostgres(scratch, account, options.version);
    const password = randomBytes(9).toString('base64url');
    await initialise(scratch, programs, account, password, options);
    return await PrivatePostgres.start(scratch, programs, account, password);
  } catch (error) {
    await scratch.remove();
    throw error;
  }
}

/** A handle on a server that somebody else started: databases can be made and dropped, faults cannot be injected. */
export function borrowPostgres(url: string): PostgresServer {
  return new BorrowedPostgres(new URL(url));
}

class BorrowedPostgres extends PostgresUrls implements PostgresServer {
  readonly private = false;
  readonly version = 'borrowed';

  start(): Promise<void> {
    return refuse('start');
  }
  stop(): Promise<number> {
    return refuse('stop');
  }
  kill9(): Promise<void> {
    return refuse('kill9');
  }
  pause(): Promise<void> {
    return refuse('pause');
  }
  resume(): Promise<void> {
    return refuse('resume');
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

function refuse(what: string): Promise<never> {
  return Promise.reject(
    new Error(`${what}() needs a PostgreSQL of one's own, and this one is shared. Use startPostgres({ own: true }).`),
  );
}

class PrivatePostgres extends PostgresUrls implements PostgresServer {
  readonly private = true;
  readonly version: string;
  #daemon: Daemon | undefined;

  private constructor(
    private readonly scratch: Scratch,
    private readonly programs: PostgresPrograms,
    private readonly account: Account,
    url: URL,
  ) {
    super(url);
    this.version = programs.version;
  }

  static async start(scratch: Scratch, programs: PostgresPrograms, account: Account, password: string) {
    const tried: string[] = [];
    for (let attempt = 1; attempt <= 3; attempt++) {
      const [port] = await freePorts(1);
      const url = new URL(`postgres://postgres:${password}@127.0.0.1:${port}/postgres`);
      const server = new PrivatePostgres(scratch, programs, account, url);
      try {
        await server.start();
        return server;
      } catch (error) {
        tried.push(error instanceof Error ? error.message : String(error));
        if (!(error instanceof PortClash)) break;
      }
    }
    throw new Error(`PostgreSQL ${programs.version} from ${programs.folder} did not start.\n${tried.join('\n')}`);
  }

  async start(): Promise<void> {
    if (this.#daemon && this.#daemon.ending === undefined) return;
    const data = this.scratch.path('data');
    const daemon = await Daemon.start(this.scratch, {
      command: join(this.programs.folder, 'postgres'),
      args: ['-D', data, '-p', String(this.port)],
      env: environment(),
      logFile: this.scratch.path('postgres.log'),
      account: this.account,
    });
    this.#daemon = daemon;
    const ready = await until(
      async () => {
        if (daemon.ending !== undefined) return 'ended';
        // Line 8 is what pg_ctl looks at, too; line 1 tells an old file from ours.
        const lines = (await readFile(join(data, 'postmaster.pid'), 'utf8')).split('\n');
        return Number(lines[0]) === daemon.pid && lines[7]?.trim() === 'ready' && 'ready';
      },
      { what: `PostgreSQL on port ${this.port} to accept connections`, withinMs: 60_000 },
    );
    if (ready === 'ended') throw await daemon.startFailure();
  }

  async stop(mode: ShutdownMode = 'fast'): Promise<number> {
    const daemon = this.running('stop');
    const began = performance.now();
    daemon.signal(({ smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT' } as const)[mode]);
    await daemon.gone(180_000, `PostgreSQL to stop (${mode})`);
    return performance.now() - began;
  }

  async kill9(): Promise<void> {
    const daemon = this.running('kill9');
    const tree = await daemon.signalTree('SIGKILL');
    await daemon.gone(10_000, 'the end of a killed PostgreSQL');
    await allGone(tree);
  }

  async pause(): Promise<void> {
    await this.running('pause').signalTree('SIGSTOP');
  }

  async resume(): Promise<void> {
    await this.running('resume').signalTree('SIGCONT');
  }

  close(): Promise<void> {
    return this.scratch.remove();
  }

  private running(what: string): Daemon {
    if (this.#daemon?.ending === undefined && this.#daemon) return this.#daemon;
    throw new Error(`${what}(): this PostgreSQL is not running (${this.#daemon?.ending ?? 'never started'})`);
  }
}

async function initialise(
  scratch: Scratch,
  programs: PostgresPrograms,
  account: Account,
  password: string,
  options: PostgresOptions,
): Promise<void> {
  const data = scratch.path('data');
  const passwordFile = scratch.path('password');
  await mkdir(data, { mode: 0o700 });
  await writeFile(passwordFile, password, { mode: 0o600 });
  if (account.uid !== undefined) {
    await Promise.all([data, passwordFile].map((path) => chown(path, account.uid!, account.gid!)));
  }
  const args = ['-D', data, '-U', 'postgres', '-E', 'UTF8', '--locale=C', '-A', 'scram-sha-256', '--no-sync'];
  const initdb = join(programs.folder, 'initdb');
  try {
    await run(initdb, [...args, `--pwfile=${passwordFile}`], { ...account, cwd: scratch.folder, env: environment() });
  } catch (error) {
    throw new Error(`${initdb} ${args.join(' ')} failed: ${String((error as { stderr?: string }).stderr)}`, {
      cause: error,
    });
  }
  const durable = options.durable ?? false;
  const settings = {
    listen_addresses: '127.0.0.1',
    // Why: a path in a deep scratch folder would not fit into the 107 bytes of a socket address.
    unix_socket_directories: '',
    wal_level: 'logical',
    max_wal_senders: 40,
    max_replication_slots: 40,
    max_connections: 200,
    max_prepared_transactions: 10,
    // Why: shared memory outside the data folder would survive a SIGKILL.
    dynamic_shared_memory_type: 'mmap',
    fsync: durable,
    full_page_writes: durable,
    timezone: 'UTC',
    ...options.settings,
  };
  const lines = Object.entries(settings).map(([name, value]) => `${name} = '${String(value).replaceAll("'", "''")}'\n`);
  await appendFile(join(data, 'postgresql.conf'), `\n${lines.join('')}`);
}

function environment(): NodeJS.ProcessEnv {
  return { PATH: process.env.PATH, LC_ALL: 'C', TZ: 'UTC' };
}

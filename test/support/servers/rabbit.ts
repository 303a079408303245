import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { until } from '../waiting.js';
import { Daemon, PortClash } from './daemon.js';
import { startPortMapper } from './epmd.js';
import { findRabbit } from './find-rabbitmq.js';
import { freePorts } from './ports.js';
import { ctlControl, managementControl, noControl, type RabbitNode } from './rabbit-control.js';
import { RabbitUrls, type RabbitServer } from './rabbit-server.js';
import { Scratch } from './scratch.js';

/** How to start a RabbitMQ node. */
export interface RabbitOptions {
  /** Further lines of rabbitmq.conf, for example { 'consumer_timeout': 5000 }. */
  settings?: Record<string, string | number | boolean>;
  /** Plugins to enable (default none). */
  plugins?: readonly string[];
  /** Schedulers of the Erlang machine (default 1, the fastest to start and fair on small machines; benches want more). */
  schedulers?: number;
  /** Starts a node of its own even where WAYBILL_TEST_BROKER_URL offers one, for tests that stop or kill it. */
  own?: boolean;
}

/**
 * Starts a private RabbitMQ node on free ports of 127.0.0.1, or borrows the one that WAYBILL_TEST_BROKER_URL names. The
 * private one is stopped and removed by `close`, and also when this process dies.
 */
export async function startRabbit(options: RabbitOptions = {}): Promise<RabbitServer> {
  const offered = process.env.WAYBILL_TEST_BROKER_URL;
  if (offered && !options.own) return borrowRabbit(offered);
  const scripts = await findRabbit();
  const tried: string[] = [];
  for (let attempt = 1; attempt <= 3; attempt++) {
    const scratch = await Scratch.open();
    try {
      return await PrivateRabbit.create(scratch, scripts, options);
    } catch (error) {
      await scratch.remove();
      tried.push(error instanceof Error ? error.message : String(error));
      if (!(error instanceof PortClash)) break;
    }
  }
  throw new Error(`RabbitMQ from ${scripts} did not start.\n${tried.join('\n')}`);
}

/** A handle on a node that somebody else started, administered as far as it can be. */
export function borrowRabbit(url: string, node?: RabbitNode): RabbitServer {
  const management = process.env.WAYBILL_TEST_BROKER_MANAGEMENT_URL;
  const control = node ? ctlControl(node) : management ? managementControl(management) : noControl();
  return new BorrowedRabbit(new URL(url), control, node);
}

class BorrowedRabbit extends RabbitUrls implements RabbitServer {
  readonly private = false;

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
  alarm(): Promise<void> {
    return refuse('alarm');
  }
  flushDeclarations(): Promise<void> {
    return refuse('flushDeclarations');
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}

function refuse(what: string): Promise<never> {
  return Promise.reject(
    new Error(`${what}() needs a RabbitMQ of one's own, and this one is shared. Use startRabbit({ own: true }).`),
  );
}

class PrivateRabbit extends RabbitUrls implements RabbitServer {
  readonly private = true;
  #daemon: Daemon | undefined;

  private constructor(
    private readonly scratch: Scratch,
    private readonly owned: RabbitNode,
    private readonly schedulers: number,
    /** The node's name without its host; unique. */
    private readonly name: string,
    url: URL,
  ) {
    super(url, ctlControl(owned), owned);
  }

  static async create(scratch: Scratch, scripts: string, options: RabbitOptions): Promise<PrivateRabbit> {
    const [amqp, epmd, distribution] = (await freePorts(3)) as [number, number, number];
    const password = randomBytes(9).toString('base64url');
    const name = `waybill-${randomBytes(4).toString('hex')}`;
    const env = environment(scratch, name, amqp, epmd, distribution);
    const settings = {
      'listeners.tcp.1': `127.0.0.1:${amqp}`,
      default_user: 'waybill',
      default_pass: password,
      'log.console': false,
      'log.file.level': 'info',
      ...options.settings,
    };
    const lines = Object.entries(settings).map(([name, value]) => `${name} = ${value}\n`);
    await writeFile(scratch.path('rabbitmq.conf'), lines.join(''));
    await writeFile(scratch.path('enabled_plugins'), `[${(options.plugins ?? []).join(', ')}].\n`);
    await startPortMapper(scratch, env, epmd);
    const url = new URL(`amqp://waybill:${password}@127.0.0.1:${amqp}/%2f`);
    const rabbit = new PrivateRabbit(scratch, { scripts, env }, options.schedulers ?? 1, name, url);
    await rabbit.start();
    return rabbit;
  }

  async start(): Promise<void> {
    if (this.#daemon && this.#daemon.ending === undefined) return;
    const daemon = await Daemon.start(this.scratch, {
      command: join(this.owned.scripts, 'rabbitmq-server'),
      args: [],
      env: {
        ...this.owned.env,
        // Why: with it the script becomes the Erlang machine instead of staying as its parent.
        RABBITMQ_ALLOW_INPUT: '1',
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: `-noinput +S ${this.schedulers}:${this.schedulers}`,
      },
      logFile: this.scratch.path('rabbitmq.log'),
    });
    this.#daemon = daemon;
    const ready = await until(
      async () => (daemon.ending === undefined ? await answers(this.port, this.name) : 'ended'),
      {
        what: `RabbitMQ to speak AMQP on port ${this.port}`,
        withinMs: 90_000,
        everyMs: 25,
      },
    );
    if (ready === 'ended') throw await daemon.startFailure();
  }

  async stop(): Promise<number> {
    const daemon = this.running('stop');
    const began = performance.now();
    daemon.signal('SIGTERM');
    await daemon.gone(60_000, 'RabbitMQ to stop');
    return performance.now() - began;
  }

  async kill9(): Promise<void> {
    const daemon = this.running('kill9');
    daemon.signal('SIGKILL');
    await daemon.gone(10_000, 'the end of a killed RabbitMQ');
  }

  pause(): Promise<void> {
    this.running('pause').signal('SIGSTOP');
    return Promise.resolve();
  }

  resume(): Promise<void> {
    this.running('resume').signal('SIGCONT');
    return Promise.resolve();
  }

  async alarm(on: boolean): Promise<void> {
    const resource = '{resource_limit, memory, node()}';
    await this.ctl(
      'eval',
      on ? `rabbit_alarm:set_alarm({${resource}, []}).` : `rabbit_alarm:clear_alarm(${resource}).`,
    );
  }

  async flushDeclarations(): Promise<void> {
    await this.ctl('eval', '[ok = dets:sync(Table) || Table <- dets:all()].');
  }

  close(): Promise<void> {
    return this.scratch.remove();
  }

  private running(what: string): Daemon {
    if (this.#daemon && this.#daemon.ending === undefined) return this.#daemon;
    throw new Error(`${what}(): this RabbitMQ is not running (${this.#daemon?.ending ?? 'never started'})`);
  }
}

function environment(
  scratch: Scratch,
  name: string,
  amqp: number,
  epmd: number,
  distribution: number,
): Record<string, string> {
  return {
    PATH: process.env.PATH ?? '',
    // Where plugins are that do not come with RabbitMQ; in its own syntax, with its own folder.
    ...(process.env.RABBITMQ_PLUGINS_DIR ? { RABBITMQ_PLUGINS_DIR: process.env.RABBITMQ_PLUGINS_DIR } : {}),
    HOME: scratch.folder,
    LANG: 'C.UTF-8',
    ERL_EPMD_PORT: String(epmd),
    ERL_EPMD_ADDRESS: '127.0.0.1',
    // Why: else each Erlang machine, rabbitmqctl's included, may start a port mapper that outlives us.
    ERL_FLAGS: '-start_epmd false',
    // No crash dump; a failing start would spend a second on it.
    ERL_CRASH_DUMP_BYTES: '0',
    // Why: on busy cores rabbitmqctl with several schedulers takes 3 to 10 s, with one 0.5 s.
    RABBITMQ_CTL_ERL_ARGS: '+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none',
    RABBITMQ_NODENAME: `${name}@localhost`,
    RABBITMQ_NODE_IP_ADDRESS: '127.0.0.1',
    RABBITMQ_NODE_PORT: String(amqp),
    RABBITMQ_DIST_PORT: String(distribution),
    RABBITMQ_CONFIG_FILE: scratch.path('rabbitmq'),
    RABBITMQ_CONF_ENV_FILE: scratch.path('rabbitmq-env.conf'),
    RABBITMQ_ENABLED_PLUGINS_FILE: scratch.path('enabled_plugins'),
    RABBITMQ_MNESIA_BASE: scratch.path('mnesia'),
    RABBITMQ_LOG_BASE: scratch.path('log'),
    RABBITMQ_PID_FILE: scratch.path('rabbitmq.pid'),
    RABBITMQ_FEATURE_FLAGS_FILE: scratch.path('feature_flags'),
    RABBITMQ_GENERATED_CONFIG_DIR: scratch.path('generated'),
  };
}

/** True when the node of that name answers the protocol header: Connection.Start carries its cluster's name. */
async function answers(port: number, name: string): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  try {
    socket.write('AMQP\0\0\x09\x01');
    const [start] = (await once(socket, 'data', { signal: AbortSignal.timeout(1000) })) as [Buffer];
    return start.includes(name);
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

import type { AdminSources } from '../admin/server.js';
import type { Config } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import { pause, systemClock, within, type Clock } from '../runtime/clock.js';
import { watchEventLoop } from '../runtime/event-loop.js';
import type { Logger } from '../telemetry/log.js';
import { Metrics } from '../telemetry/metrics-registry.js';
import { loadTracing, type Tracing } from '../telemetry/tracing.js';
import { startAdminService } from './admin-service.js';
import { readAdminToken } from './admin-token.js';
import { startCleaner } from './cleaning.js';
import { consumerHealth, showConsumers } from './consumer-metrics.js';
import { startConsumers, type ConsumerService } from './consumer-service.js';
import { collectFromDatabase } from './database-metrics.js';
import { freshServers } from './fresh-servers.js';
import { liveStatus, type LiveStatus } from './live-status.js';
import { showProcess } from './process-metrics.js';
import { RelayHealth } from './relay-health.js';
import { showRelay } from './relay-metrics.js';
import { startRelayService, type RelayService } from './relay-service.js';
import { collectStatus } from './status.js';
import { Rate } from './throughput.js';
import { traceConfirmed } from './trace-confirmed.js';

/** Everything that `waybill run` runs. */
export interface Daemon {
  /** Resolves when it has ended after stop(); rejects when it cannot go on. */
  stopped: Promise<void>;
  /** Takes no more in, finishes what is in flight, lets go. Idempotent. */
  stop(): Promise<'drained' | 'incomplete'>;
}

export interface DaemonOptions {
  /** Reads the configuration again; throws as loadConfig does. */
  reload: () => Config;
  version: string;
  /** One part alone; without it, all that the configuration has. */
  only?: 'relay' | 'consumers' | undefined;
  clock?: Clock;
}

const SAMPLE_INTERVAL_MS = 1_000;
const END_LIMIT_MS = 500;

/** Starts the relay and, beside it, what shows it: health, metrics, status. The relay never waits for those. */
export function startDaemon(config: Config, log: Logger, options: DaemonOptions): Daemon {
  const { reload, version, only, clock = systemClock } = options;
  const started = start(config, log, { reload, version, clock }, only);
  const stopped = started.then(({ stopped }) => stopped);
  // Whoever started it looks at this one or at what stop() gives; the other must not end the process.
  stopped.catch(() => undefined);
  return { stopped, stop: () => started.then((running) => running.stop()) };
}

type Surroundings = Required<Omit<DaemonOptions, 'only'>>;

async function start(config: Config, log: Logger, options: Surroundings, only: DaemonOptions['only']): Promise<Daemon> {
  const withConsumers = config.consumers.length > 0 && only !== 'relay';
  const withRelay = config.relay.enabled && only !== 'consumers';
  if (!withConsumers && !withRelay) {
    throw new WaybillError('WAYBILL_CONFIG_INVALID', 'There is nothing to run.', {
      hint: 'Name consumers in the configuration, let the relay run, or take --only away.',
    });
  }
  if (config.admin.listen && config.admin.tokenFile !== undefined) await readAdminToken(config.admin.tokenFile);
  const name = config.relay.name;
  const names = withConsumers ? config.consumers.map((consumer) => consumer.name) : [];
  const metrics = new Metrics(
    { relay: [name], consumer: names, version: [options.version] },
    new Set([
      ...(withRelay ? (['relay'] as const) : []),
      ...(withConsumers ? (['consumers'] as const) : []),
      'process',
    ] as const),
  );
  const tracing = await loadTracing(options.version);
  const consumers = withConsumers ? watchedConsumers(config, log, options, metrics, tracing) : undefined;
  const parts: Daemon[] = [];
  if (withRelay) parts.push(startRelay(config, log, options, { metrics, consumers, tracing }));
  if (consumers) parts.push(withRelay ? consumers : alone(consumers, config, log, options, metrics));
  const settings = (): Config['database'] => freshServers(config, options.reload).database;
  const running = together([...parts, startCleaner(config, log, { settings, clock: options.clock })]);
  return tracing ? flushing(running, tracing, options.clock) : running;
}

/** The last spans are those of the drain. */
function flushing(daemon: Daemon, tracing: Tracing, clock: Clock): Daemon {
  const flush = () => within(clock, tracing.flush(), END_LIMIT_MS, undefined);
  return { stopped: daemon.stopped.finally(flush), stop: () => daemon.stop().finally(flush) };
}

function watchedConsumers(
  config: Config,
  log: Logger,
  { reload, clock }: Surroundings,
  metrics: Metrics,
  tracing: Tracing | undefined,
): ConsumerService {
  const seconds = new Map(
    config.consumers.map(({ name: consumer }) => [
      consumer,
      metrics.observer('waybill_inbox_handler_seconds', { consumer }),
    ]),
  );
  const consumers = startConsumers(config, log, {
    reload,
    clock,
    tracing,
    onHandled: (consumer, took) => seconds.get(consumer)?.(took),
  });
  metrics.beforeShowing(() => showConsumers(metrics, consumers.look()));
  return consumers;
}

/** Which consumers an operator has paused, as the last look at the database has it. */
class Pauses {
  #names: ReadonlySet<string> = new Set();

  get names(): ReadonlySet<string> {
    return this.#names;
  }

  note(names: ReadonlySet<string>): void {
    this.#names = names;
  }
}

/** Consumers without a relay, and what shows them. */
function alone(
  consumers: ConsumerService,
  config: Config,
  log: Logger,
  options: Surroundings,
  metrics: Metrics,
): Daemon {
  const { clock, version } = options;
  const ending = new AbortController();
  const names = config.consumers.map((consumer) => consumer.name);
  const pauses = new Pauses();
  const parts = { relay: false, consumers: names, onPaused: pauses.note.bind(pauses) };
  const collecting = collect(config, log, options, metrics, ending.signal, parts);
  const eventLoop = watchEventLoop(clock);
  const eventLoopLag = (): number => eventLoop.lagSeconds();
  metrics.beforeShowing(() => showProcess(metrics, version, eventLoopLag()));
  const live = () => ({
    version,
    pid: process.pid,
    uptimeSeconds: Math.round(process.uptime()),
    consumers: consumers.look(),
    eventLoopLagSeconds: eventLoopLag(),
  });
  const admin = startAdminService(
    config.admin,
    {
      health: () => [consumerHealth(consumers.look(), true, pauses.names)],
      eventLoopLag,
      metrics,
      live,
      // There is no relay here that could tell of itself.
      status: async () => ({
        ...(await collectStatus(freshServers(config, options.reload), { live: null })),
        live: live(),
      }),
    },
    log,
    clock,
  );
  const end = async (): Promise<void> => {
    ending.abort();
    eventLoop.stop();
    await admin.stop();
    await within(clock, collecting, END_LIMIT_MS, undefined);
  };
  return { stopped: consumers.stopped.finally(end), stop: () => consumers.stop().finally(end) };
}

/** What ends one part ends the others: a process of which half is missing looks like one that works. */
function together(parts: readonly Daemon[]): Daemon {
  const stop = async (): Promise<'drained' | 'incomplete'> => {
    const ends = await Promise.all(parts.map((part) => part.stop()));
    return ends.includes('incomplete') ? 'incomplete' : 'drained';
  };
  const stopped = Promise.race(parts.map((part) => part.stopped)).finally(() => stop().catch(() => undefined));
  stopped.catch(() => undefined);
  return { stopped, stop };
}

function startRelay(
  config: Config,
  log: Logger,
  options: Surroundings,
  {
    metrics,
    consumers,
    tracing,
  }: { metrics: Metrics; consumers: ConsumerService | undefined; tracing: Tracing | undefined },
): Daemon {
  const { reload, clock } = options;
  const name = config.relay.name;
  const toConfirm = metrics.observer('waybill_outbox_commit_to_confirm_seconds', { relay: name });
  const relay = startRelayService(config, log, {
    reload,
    clock,
    onConfirmed: (work, nowMs) => {
      const { committedAtMs } = work;
      if (committedAtMs !== null) toConfirm(Math.max(0, nowMs - committedAtMs) / 1000);
      if (tracing) traceConfirmed(tracing, work, nowMs);
    },
  });
  const watching = new AbortController();
  const pauses = new Pauses();
  const view = new DaemonView(config, { relay, consumers, pauses }, metrics, options, watching.signal);
  const names = consumers ? config.consumers.map((consumer) => consumer.name) : [];
  const shown = { relay: true, consumers: names, onPaused: pauses.note.bind(pauses) };
  const collecting = collect(config, log, options, metrics, watching.signal, shown);
  const admin = startAdminService(config.admin, view.sources, log, clock);
  // Readiness is false from the first moment of a stop on; the last word is served while the relay drains.
  const end = async (): Promise<void> => {
    watching.abort();
    await admin.stop();
    // Its statement may hang with the database; nothing waits for that.
    await within(clock, collecting, END_LIMIT_MS, undefined);
  };
  return { stopped: relay.stopped.finally(end), stop: () => relay.stop().finally(end) };
}

function collect(
  config: Config,
  log: Logger,
  { reload, clock }: Surroundings,
  metrics: Metrics,
  ending: AbortSignal,
  parts: Parameters<typeof collectFromDatabase>[5],
): Promise<void> {
  if (!config.admin.listen) return Promise.resolve();
  const fresh = (): Config => freshServers(config, reload);
  return collectFromDatabase(metrics, fresh, log, clock, ending, parts);
}

/** Looks at the relay once a second, so that rates and hangs are seen, and whenever somebody asks. */
class DaemonView {
  readonly #config: Config;
  readonly #relay: RelayService;
  readonly #consumers: ConsumerService | undefined;
  readonly #pauses: Pauses;
  readonly #reload: () => Config;
  readonly #clock: Clock;
  readonly #version: string;
  readonly #metrics: Metrics;
  readonly #health: RelayHealth;
  readonly #confirmed = new Rate();
  readonly #eventLoop;

  constructor(
    config: Config,
    { relay, consumers, pauses }: { relay: RelayService; consumers: ConsumerService | undefined; pauses: Pauses },
    metrics: Metrics,
    { clock, version, reload }: Surroundings,
    ending: AbortSignal,
  ) {
    this.#config = config;
    this.#relay = relay;
    this.#consumers = consumers;
    this.#pauses = pauses;
    this.#reload = reload;
    this.#clock = clock;
    this.#version = version;
    this.#metrics = metrics;
    this.#health = new RelayHealth(config.admin.staleAfterMs);
    this.#eventLoop = watchEventLoop(clock);
    ending.addEventListener('abort', () => this.#eventLoop.stop(), { once: true });
    metrics.beforeShowing(() => this.#show());
    this.#sample(ending).catch(() => undefined);
  }

  get sources(): AdminSources {
    return {
      health: () => [
        this.#check(),
        ...(this.#consumers ? [consumerHealth(this.#consumers.look(), false, this.#pauses.names)] : []),
      ],
      eventLoopLag: () => this.#eventLoop.lagSeconds(),
      metrics: this.#metrics,
      live: () => this.#live(),
      status: () => collectStatus(freshServers(this.#config, this.#reload), { live: this.#live() }),
    };
  }

  async #sample(ending: AbortSignal): Promise<void> {
    while (!ending.aborted) {
      this.#check();
      this.#confirmed.note(this.#relay.look().counters.confirmed, this.#clock.now());
      await pause(this.#clock, SAMPLE_INTERVAL_MS, ending);
    }
  }

  #check() {
    return this.#health.check(this.#relay.look(), this.#clock.now());
  }

  #show(): void {
    showRelay(this.#metrics, this.#config.relay, this.#relay.look(), this.#check().ready);
    showProcess(this.#metrics, this.#version, this.#eventLoop.lagSeconds());
  }

  #live(): LiveStatus {
    return liveStatus(this.#config, this.#relay.look(), this.#check(), {
      throughput: this.#confirmed.read(),
      eventLoopLagSeconds: this.#eventLoop.lagSeconds(),
      nowMs: this.#clock.now(),
      version: this.#version,
    });
  }
}

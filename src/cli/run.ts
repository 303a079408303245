import { Option, type Command } from 'commander';
import { startDaemon, type Daemon } from '../app/daemon.js';
import type { Config } from '../config/load.js';
import { WaybillError } from '../core/errors.js';
import { pause, systemClock, type Clock } from '../runtime/clock.js';
import { keepHeapSmall } from '../runtime/heap.js';
import { createLogger, type AdjustableLogger, type Logger } from '../telemetry/log.js';
import { EXIT } from './context.js';
import type { Cli } from './program.js';

/** How much longer than its own drain timeout a service may take to close everything. */
const CLOSING_MS = 5_000;

export function registerRun(program: Command, cli: Cli): void {
  program
    .command('run')
    .description('Run the relay and the consumers until SIGTERM or SIGINT.')
    .addOption(new Option('--only <part>', 'run one part alone').choices(['relay', 'consumers']))
    .action(async ({ only }: { only?: 'relay' | 'consumers' }) => {
      keepHeapSmall();
      const config = cli.configuration.whole();
      const { level, format } = config.log;
      const logger = createLogger({
        level,
        format,
        write: cli.context.out,
        isTerminal: cli.context.outIsTerminal,
      });
      cli.logger = logger;
      const surviving = outliveLog(cli);
      await runUntilStopped(config, logger, {
        onSignal: surviving,
        clock: systemClock,
        start: (given, log) =>
          startDaemon(given, log, { reload: () => cli.configuration.whole(), version: cli.version, only }),
        reload: () => cli.configuration.whole(),
      });
    });
}

/**
 * A log that nobody takes (its reader is gone, its disk is full) stops no message: that is said once, on standard error,
 * and work goes on. A terminal that is gone has taken its operator with it: then everything is drained and ends as failed.
 * Gives what calls a listener for signals.
 */
function outliveLog(cli: Cli): RunSurroundings['onSignal'] {
  const { context } = cli;
  const listeners: ((name: NodeJS.Signals) => void)[] = [];
  let isTold = false;
  context.onOutputLost?.((which, error) => {
    if (which === 'err' || isTold) return;
    isTold = true;
    if (context.outIsTerminal) {
      cli.exitCode = EXIT.failed;
      for (const listener of listeners) listener('SIGTERM');
      return;
    }
    const why = error.code ?? error.message;
    context.err(
      `waybill: the log cannot be written (${why}); its lines are lost. Messages go on. Restart to mend it.\n`,
    );
  });
  return (listener) => {
    listeners.push(listener);
    context.onSignal(listener);
  };
}

/** What runUntilStopped needs of the world. */
export interface RunSurroundings {
  onSignal: (listener: (name: NodeJS.Signals) => void) => void;
  clock: Clock;
  start: (config: Config, logger: Logger) => Daemon;
  /** Reads the configuration again; throws as loadConfig does. */
  reload: () => Config;
}

/**
 * Runs the service until it ends by itself or a signal asks it to. The first SIGTERM or SIGINT drains; a second one, or
 * the deadline, gives up at once with WAYBILL_DRAIN_INCOMPLETE (safe: what was unconfirmed is published again).
 */
export async function runUntilStopped(
  config: Config,
  logger: AdjustableLogger,
  around: RunSurroundings,
): Promise<void> {
  const asked = deferred<NodeJS.Signals>();
  const insisted = deferred<NodeJS.Signals>();
  around.onSignal((name) => {
    if (name === 'SIGHUP') takeUp(config, logger, around.reload);
    else if (asked.settled()) insisted.resolve(name);
    else asked.resolve(name);
  });
  const service = around.start(config, logger);
  const drained = asked.promise.then((signal) => {
    logger.info({ signal, drainTimeoutMs: config.relay.drainTimeoutMs }, 'Stopping; a second signal stops at once.');
    return service.stop();
  });
  const deadline = asked.promise.then(async () => {
    await pause(around.clock, config.relay.drainTimeoutMs + CLOSING_MS);
    return 'deadline' as const;
  });
  const outcome = await Promise.race([
    // Why: stop() ends the service too, and its answer is the one that counts.
    service.stopped.then(() => (asked.settled() ? drained : ('ended' as const))),
    drained,
    deadline,
    insisted.promise.then(() => 'insisted' as const),
  ]);
  switch (outcome) {
    case 'drained':
      logger.info({}, 'Stopped; nothing was left in flight.');
      return;
    case 'ended':
      logger.info({}, 'Ended.');
      return;
    case 'incomplete':
      throw incomplete('the drain timeout passed, or a session ended with an error before it had settled them');
    case 'deadline':
      throw incomplete('closing took longer than the drain timeout and 5 s');
    case 'insisted':
      throw incomplete('a second signal came');
  }
}

/**
 * F113: what SIGHUP does. Secrets are known from here on and used at the next connection, the log level holds at once;
 * of what needs a restart only the section is told. A configuration that is wrong changes nothing.
 */
function takeUp(running: Config, logger: AdjustableLogger, reload: () => Config): void {
  let next: Config;
  try {
    next = reload();
  } catch (error) {
    logger.error({ err: error }, 'SIGHUP: the new configuration is wrong; the old one stays.');
    return;
  }
  logger.setLevel(next.log.level);
  const needsRestart = (
    ['database.schema', 'relay', 'consumers', 'retention', 'admin', 'log.format', 'log.messages'] as const
  ).filter((name) => JSON.stringify(restarting(running)[name]) !== JSON.stringify(restarting(next)[name]));
  logger.info(
    { logLevel: next.log.level, needsRestart },
    'SIGHUP: read the configuration again; connections use it when they are made anew.',
  );
}

/** What is taken up by a restart only. */
function restarting({ database, relay, consumers, retention, admin, log }: Config) {
  return {
    'database.schema': database.schema,
    relay,
    consumers,
    retention,
    admin,
    'log.format': log.format,
    'log.messages': log.messages,
  };
}

function incomplete(why: string): WaybillError {
  return new WaybillError('WAYBILL_DRAIN_INCOMPLETE', `Stopped with messages unconfirmed: ${why}.`, {
    hint: 'Nothing is lost: they are still in the outbox or in the log, and will be published again with the same ids.',
  });
}

function deferred<T>() {
  let isSettled = false;
  let settle: (value: T) => void = () => undefined;
  const promise = new Promise<T>((resolve) => (settle = resolve));
  const resolve = (value: T): void => {
    isSettled = true;
    settle(value);
  };
  return { promise, resolve, settled: () => isSettled };
}

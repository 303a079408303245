import { Command, CommanderError } from 'commander';
import { isWaybillError } from '../core/errors.js';
import type { Logger } from '../telemetry/log.js';
import { escaped } from '../telemetry/visible.js';
import { configuration, type Configuration, type GlobalOptions } from './configuration.js';
import { registerConfig } from './config.js';
import { EXIT, type CliContext, type ExitCode } from './context.js';
import { exitCodeOf, formatFailure } from './failure.js';
import { registerDoctor } from './doctor.js';
import { registerInit } from './init.js';
import { registerMigrate } from './migrate.js';
import { registerOutbox } from './outbox.js';
import { registerRelay } from './relay.js';
import { registerRun } from './run.js';
import { registerTail } from './tail.js';
import { registerTopology } from './topology.js';
import { registerInbox } from './inbox.js';
import { registerDead } from './dead.js';
import { registerConsumer } from './consumer.js';
import { registerRedact } from './redact.js';
import { registerUninstall } from './uninstall.js';
import { registerTrace } from './trace.js';
import { registerStatus } from './status.js';

/** What the commands share: the world, the configuration, and the exit code that they leave. */
export interface Cli {
  context: CliContext;
  configuration: Configuration;
  version: string;
  exitCode: ExitCode;
  /** Set by a command that logs, so that its failure is logged in the same form. */
  logger: Logger | undefined;
}

/** Reads the command line (without node and script), does what it says and gives the exit code; never throws. */
export async function runCli(args: readonly string[], version: string, world: CliContext): Promise<ExitCode> {
  // Names and texts of others may stand in whatever is written.
  const context: CliContext = {
    ...world,
    out: (text) => world.out(escaped(text)),
    err: (text) => world.err(escaped(text)),
  };
  const program = new Command('waybill');
  const cli: Cli = {
    context,
    configuration: configuration(context, () => program.opts<GlobalOptions>()),
    version,
    exitCode: EXIT.ok,
    logger: undefined,
  };
  program
    .description('Transactional outbox and inbox for PostgreSQL and RabbitMQ.')
    .version(version)
    .option('-c, --config <file>', 'configuration file, YAML or JSON (or WAYBILL_CONFIG)')
    .option('--verbose', 'show where an error comes from')
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError('(`waybill --help` lists the commands)')
    .exitOverride()
    .configureOutput({ writeOut: context.out, writeErr: context.err });
  registerInit(program, cli);
  registerRun(program, cli);
  registerStatus(program, cli);
  registerDoctor(program, cli);
  registerMigrate(program, cli);
  registerTrace(program, cli);
  registerOutbox(program, cli);
  registerInbox(program, cli);
  registerDead(program, cli);
  registerConsumer(program, cli);
  registerRedact(program, cli);
  registerRelay(program, cli);
  registerTopology(program, cli);
  registerTail(program, cli);
  registerUninstall(program, cli);
  registerConfig(program, cli);
  try {
    await program.parseAsync([...args], { from: 'user' });
    return cli.exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    report(cli, error, program.opts<GlobalOptions>().verbose ?? false);
    return exitCodeOf(error);
  }
}

function report(cli: Cli, error: unknown, verbose: boolean): void {
  if (cli.logger) {
    const facts = isWaybillError(error) ? { code: error.code, hint: error.hint } : {};
    cli.logger.error({ ...facts, err: error }, 'Stopped by an error.');
  }
  cli.context.err(formatFailure(error, { verbose }));
}

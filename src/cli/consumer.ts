import { Option, type Command } from 'commander';
import {
  assertConsumerKnown,
  cancelRenameOf,
  drainConsumer,
  estimateRename,
  forgetConsumerRows,
  listConsumers,
  renameConsumerTo,
  switchConsumer,
} from '../app/inbox-admin.js';
import { counted } from '../core/counted.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { duration } from './arguments.js';
import { confirm } from './confirm.js';
import { EXIT } from './context.js';
import { formatConsumers } from './inbox-text.js';
import type { Cli } from './program.js';
import { printable, spokenCount } from './text.js';

const DRAIN_MS = 60_000;
/** From here on it takes seconds. */
const LONG_RENAME_ROWS = 100_000;

export function registerConsumer(program: Command, cli: Cli): void {
  const consumer = program.command('consumer').description('List, pause, resume, drain, rename or forget consumers.');
  const say = (text: string): void => cli.context.out(`${printable(createTextRedactor()(text))}\n`);
  const assertRegistered = (name: string): Promise<void> =>
    assertConsumerKnown(cli.configuration.database(), name, cli.configuration.consumerNames(), 'registered');
  const answered = async (name: string, answer: string, wanted: readonly string[]): Promise<void> => {
    if (!wanted.includes(answer)) cli.exitCode = EXIT.failed;
    if (answer === 'unknown') await assertRegistered(name);
    say(`Consumer ${name}: ${answer}.`);
  };

  consumer
    .command('list')
    .description('Show the registered consumers, their backlog, and whether they are paused.')
    .option('--json', 'as JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const consumers = await listConsumers(cli.configuration.database());
      if (json) cli.context.out(`${JSON.stringify(consumers, null, 2)}\n`);
      else say(formatConsumers(consumers));
    });

  consumer
    .command('pause <name>')
    .description('Hand out no further message of the consumer; what is being handled ends. Messages go on to be kept.')
    .requiredOption('--reason <text>', 'why; shown to everybody, and kept in the action_log')
    .action(async (name: string, { reason }: { reason: string }) => {
      const answer = await switchConsumer(cli.configuration.database(), 'pause', name, reason);
      await answered(name, answer, ['paused', 'already paused']);
    });

  consumer
    .command('resume <name>')
    .description("End a pause, an operator's or the program's own.")
    .option('--reason <text>', 'why; kept in the action_log')
    .action(async (name: string, { reason }: { reason?: string }) => {
      const answer = await switchConsumer(cli.configuration.database(), 'resume', name, reason ?? null);
      await answered(name, answer, ['resumed', 'not paused']);
    });

  consumer
    .command('drain <name>')
    .description(
      'Pause the consumer and wait until nothing of it is being handled; exit code 1 if that takes too long.',
    )
    .requiredOption('--reason <text>', 'why; shown to everybody, and kept in the action_log')
    .addOption(new Option('--timeout <duration>', 'how long to wait').argParser(duration).default(DRAIN_MS, '1m'))
    .action(async (name: string, { reason, timeout }: { reason: string; timeout: number }) => {
      const database = cli.configuration.database();
      const answer = await switchConsumer(database, 'pause', name, reason);
      if (answer === 'unknown') {
        await answered(name, answer, []);
        return;
      }
      const left = await drainConsumer(database, name, timeout, (running) =>
        cli.context.err(`${running} being handled\n`),
      );
      if (left > 0) cli.exitCode = EXIT.failed;
      say(
        left === 0
          ? `Consumer ${name} is paused, and nothing of it is being handled.`
          : `Consumer ${name} is paused; ${counted(left, 'message is', 'messages are')} still being handled after ${timeout / 1000} s.`,
      );
    });

  consumer
    .command('rename <old> <new>')
    .description(
      'Give a consumer another name: it still knows what it has applied. Stop the programs that run it first. Interrupted, it goes on when it is called again.',
    )
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--cancel', 'take back one that was begun, while no message has the new name')
    .option('--yes', 'do not ask')
    .action(async (from: string, to: string, options: { reason?: string; cancel?: boolean; yes?: boolean }) => {
      const { reason, cancel, yes } = options;
      const database = cli.configuration.database();
      if (cancel) {
        await cancelRenameOf(database, { from, to });
        say(`Consumer ${from} keeps its name; messages are received and handed out again.`);
        return;
      }
      await assertRegistered(from);
      const about = await estimateRename(database, from);
      const long = about < LONG_RENAME_ROWS ? '' : ` Its messages, about ${spokenCount(about)}, are written anew.`;
      await confirm(
        cli,
        printable(
          `Rename consumer ${from} to ${to}?${long} Programs that run it must be stopped: until it is through, nothing is received or handed out under either name.`,
        ),
        yes,
      );
      const moved = await renameConsumerTo(database, { from, to }, reason ?? null, (soFar) =>
        cli.context.err(`${spokenCount(soFar)} of about ${spokenCount(Math.max(about, soFar))}\n`),
      );
      say(`Consumer ${from} is ${to} now; ${counted(moved, 'message')} went along.`);
    });

  consumer
    .command('forget <name>')
    .description('Remove a consumer that is gone for good, with its messages: it no longer knows what it has applied.')
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--force', 'although messages are unfinished')
    .option('--yes', 'do not ask')
    .action(async (name: string, { reason, force, yes }: { reason?: string; force?: boolean; yes?: boolean }) => {
      await confirm(cli, printable(`Forget consumer ${name} with all its messages? They cannot be brought back.`), yes);
      const answer = await forgetConsumerRows(cli.configuration.database(), name, reason ?? null, force === true);
      await answered(name, answer, ['forgotten']);
    });
}

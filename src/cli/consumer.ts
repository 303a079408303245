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
import { sayJson } from './json.js';
import type { Cli } from './program.js';
import { printable, spokenCount } from './text.js';

const DRAIN_MS = 60_000;
/** From here on it takes seconds. */
const LONG_RENAME_ROWS = 100_000;

/** What is done to which consumer: the first keys of the JSON answer. */
interface Act {
  act: 'pause' | 'resume' | 'drain' | 'rename' | 'forget';
  consumer: string;
  json: boolean | undefined;
}

interface RenameOptions {
  reason?: string;
  cancel?: boolean;
  yes?: boolean;
  json?: boolean;
}

interface ForgetOptions {
  reason?: string;
  force?: boolean;
  yes?: boolean;
  json?: boolean;
}

export function registerConsumer(program: Command, cli: Cli): void {
  const consumer = program.command('consumer').description('List, pause, resume, drain, rename or forget consumers.');
  const say = (text: string): void => cli.context.out(`${printable(createTextRedactor()(text))}\n`);
  const assertRegistered = (name: string): Promise<void> =>
    assertConsumerKnown(cli.configuration.database(), name, cli.configuration.consumerNames(), 'registered');
  const answered = async (act: Act, answer: string, wanted: readonly string[]): Promise<void> => {
    if (!wanted.includes(answer)) cli.exitCode = EXIT.failed;
    if (answer === 'unknown') await assertRegistered(act.consumer);
    told(act, answer, `Consumer ${act.consumer}: ${answer}.`);
  };
  const told = ({ json, ...act }: Act, answer: string, text: string, facts: object = {}): void => {
    if (json) sayJson(cli, { ...act, answer, ...facts });
    else say(text);
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
    .option('--json', 'as JSON')
    .action(async (name: string, { reason, json }: { reason: string; json?: boolean }) => {
      const answer = await switchConsumer(cli.configuration.database(), 'pause', name, reason);
      await answered({ act: 'pause', consumer: name, json }, answer, ['paused', 'already paused']);
    });

  consumer
    .command('resume <name>')
    .description("End a pause, an operator's or the program's own.")
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--json', 'as JSON')
    .action(async (name: string, { reason, json }: { reason?: string; json?: boolean }) => {
      const answer = await switchConsumer(cli.configuration.database(), 'resume', name, reason ?? null);
      await answered({ act: 'resume', consumer: name, json }, answer, ['resumed', 'not paused']);
    });

  consumer
    .command('drain <name>')
    .description(
      'Pause the consumer and wait until nothing of it is being handled; exit code 1 if that takes too long.',
    )
    .requiredOption('--reason <text>', 'why; shown to everybody, and kept in the action_log')
    .addOption(new Option('--timeout <duration>', 'how long to wait').argParser(duration).default(DRAIN_MS, '1m'))
    .option('--json', 'as JSON')
    .action(async (name: string, { reason, timeout, json }: { reason: string; timeout: number; json?: boolean }) => {
      const act: Act = { act: 'drain', consumer: name, json };
      const database = cli.configuration.database();
      const answer = await switchConsumer(database, 'pause', name, reason);
      if (answer === 'unknown') {
        await answered(act, answer, []);
        return;
      }
      const left = await drainConsumer(database, name, timeout, (running) =>
        cli.context.err(`${running} being handled\n`),
      );
      if (left > 0) cli.exitCode = EXIT.failed;
      told(
        act,
        left === 0 ? 'drained' : 'still running',
        left === 0
          ? `Consumer ${name} is paused, and nothing of it is being handled.`
          : `Consumer ${name} is paused; ${counted(left, 'message is', 'messages are')} still being handled after ${timeout / 1000} s.`,
        { running: left },
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
    .option('--json', 'as JSON')
    .action(async (from: string, to: string, options: RenameOptions) => {
      const { reason, cancel, yes, json } = options;
      const act: Act = { act: 'rename', consumer: from, json };
      const database = cli.configuration.database();
      if (cancel) {
        await cancelRenameOf(database, { from, to });
        const text = `Consumer ${from} keeps its name; messages are received and handed out again.`;
        told(act, 'taken back', text, { to, moved: 0 });
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
      told(act, 'renamed', `Consumer ${from} is ${to} now; ${counted(moved, 'message')} went along.`, { to, moved });
    });

  consumer
    .command('forget <name>')
    .description('Remove a consumer that is gone for good, with its messages: it no longer knows what it has applied.')
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--force', 'although messages are unfinished')
    .option('--yes', 'do not ask')
    .option('--json', 'as JSON')
    .action(async (name: string, { reason, force, yes, json }: ForgetOptions) => {
      await confirm(cli, printable(`Forget consumer ${name} with all its messages? They cannot be brought back.`), yes);
      const answer = await forgetConsumerRows(cli.configuration.database(), name, reason ?? null, force === true);
      await answered({ act: 'forget', consumer: name, json }, answer, ['forgotten']);
    });
}

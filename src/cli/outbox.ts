import { InvalidArgumentError, Option, type Command } from 'commander';
import {
  ACTS_ON,
  actOnRows,
  chooseRows,
  DONE,
  listOutbox,
  lookAtRows,
  MOST_BULK_ROWS,
  showMessage,
  type Answer,
  type RowAct,
  type RowFilter,
  type RowOrder,
} from '../app/outbox-admin.js';
import { parseDuration } from '../config/quantities.js';
import { systemClock } from '../runtime/clock.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { confirm } from './confirm.js';
import { EXIT } from './context.js';
import { formatAnswers, formatKinds, formatList, formatMessage } from './outbox-text.js';
import type { Cli } from './program.js';
import { printable, spokenCount } from './text.js';

interface FilterOptions {
  state?: string;
  type?: string;
  key?: string;
  error?: string;
  since?: number;
  older?: number;
  limit?: number;
}

interface ActOptions extends FilterOptions {
  all?: boolean;
  dryRun?: boolean;
  yes?: boolean;
  reason?: string;
}

const STATES = ['ready', 'scheduled', 'parked', 'blocked', 'cancelled', 'discarded'];
const LISTED_ROWS = 50;
/** How often a long piece of work is told of. */
const PROGRESS_MS = 2_000;

export function registerOutbox(program: Command, cli: Cli): void {
  const outbox = program.command('outbox').description('Look at the rows of the outbox; retry or discard held ones.');
  const say = (text: string): void => cli.context.out(`${printable(createTextRedactor()(text))}\n`);
  const sayJson = (value: unknown): void => cli.context.out(`${JSON.stringify(value, null, 2)}\n`);

  withFilters(outbox.command('list'), STATES)
    .description('Show rows in the order of the table, each with its error.')
    .option('--json', 'as JSON')
    .action(async (options: FilterOptions & { json?: boolean }) => {
      const database = cli.configuration.database();
      const list = await listOutbox(database, filterOf(options), options.limit ?? LISTED_ROWS);
      if (options.json) sayJson(list);
      else say(formatList(list));
    });

  outbox
    .command('show')
    .argument('<id>', 'the id of a message', messageId)
    .description('Show one message: in the outbox, else in the history, and what operators did to it.')
    .option('--body', 'with its body')
    .option('--json', 'as JSON')
    .action(async (id: string, options: { body?: boolean; json?: boolean }) => {
      const message = await showMessage(cli.configuration.database(), id, options.body === true);
      if (message === undefined || (message.outbox === null && message.history === null)) cli.exitCode = EXIT.failed;
      if (message === undefined) cli.context.err(`waybill: no message ${id} is known.\n`);
      else if (options.json) sayJson(message);
      else say(formatMessage(message));
    });

  const acts = [
    ['retry', 'Publish rows that could not be published, now and with their attempts counted anew.'],
    ['discard', 'Give held rows up: they are never published, and go to the history as discarded.'],
  ] as const;
  for (const [act, description] of acts) {
    withFilters(outbox.command(act), ACTS_ON[act])
      .argument('[ids...]', 'the ids of messages', messageIds)
      .description(description)
      .option('--all', 'every row that the filters let through, as they are now; parked ones unless --state says else')
      .option('--dry-run', 'only show which rows it would be')
      .option('--yes', 'do not ask')
      .option('--reason <text>', 'why; kept in the action_log')
      .action(async (given: string[] | undefined, options: ActOptions, command: Command) => {
        const ids = [...new Set(given)];
        const usage = usageProblem(ids, options);
        if (usage !== undefined) command.error(`error: ${usage}`);
        if (ids.length > 0) await actOnIds(cli, say, act, ids, options);
        else await actOnAll(cli, say, act, options);
      });
  }
}

function withFilters(command: Command, states: readonly string[]): Command {
  return command
    .addOption(new Option('--state <state>', 'in this state').choices(states))
    .option('--type <type>', 'of this type')
    .option('--key <key>', 'of this key')
    .option('--error <text>', 'with this text in the error, in any case')
    .option('--since <duration>', 'written at most so long ago, such as 2h', duration)
    .option('--older <duration>', 'written longer ago than this', duration)
    .option('--limit <rows>', 'at most so many', rowCount);
}

function filterOf({ state, type, key, error, since, older }: FilterOptions, states?: readonly string[]): RowFilter {
  const wanted = state === undefined ? states : [state];
  return {
    ...(wanted === undefined ? {} : { states: wanted }),
    ...(type === undefined ? {} : { type }),
    ...(key === undefined ? {} : { key }),
    ...(error === undefined ? {} : { error }),
    ...(since === undefined ? {} : { sinceMs: since }),
    ...(older === undefined ? {} : { olderMs: older }),
  };
}

function usageProblem(ids: readonly string[], options: ActOptions): string | undefined {
  if (ids.length === 0) return options.all ? undefined : 'give the ids of messages, or --all with filters';
  if (options.all) return 'give ids or --all, not both';
  const filters = ['state', 'type', 'key', 'error', 'since', 'older', 'limit'] as const;
  const given = filters.find((name) => options[name] !== undefined);
  return given === undefined ? undefined : `--${given} goes with --all, not with ids`;
}

/** Rows that the operator names: a line for each, and exit code 1 if one was not to be changed. */
async function actOnIds(
  cli: Cli,
  say: (text: string) => void,
  act: RowAct,
  ids: readonly string[],
  options: ActOptions,
): Promise<void> {
  const database = cli.configuration.database();
  if (options.dryRun) {
    say(formatAnswers(await lookAtRows(database, ids)));
    say(`Nothing was changed. ${act} acts on rows that are ${ACTS_ON[act].join(', ')}.`);
    return;
  }
  if (act === 'discard') {
    const rows = ids.length === 1 ? `message ${ids[0] ?? ''}` : `${spokenCount(ids.length)} messages`;
    await confirm(cli, `Discard ${rows}? Nobody will receive what is discarded.`, options.yes);
  }
  let done = 0;
  await actOnRows(database, { act, ids, reason: options.reason ?? null, states: null }, (answers) => {
    say(formatAnswers(answers));
    done += answers.filter(({ answer }) => answer === DONE[act]).length;
  });
  if (done < ids.length) cli.exitCode = EXIT.failed;
}

/** Rows that filters choose: those of now, told in sums. */
async function actOnAll(cli: Cli, say: (text: string) => void, act: RowAct, options: ActOptions): Promise<void> {
  const database = cli.configuration.database();
  const states = options.state === undefined ? ['parked'] : [options.state];
  const chosen = await chooseRows(database, filterOf(options, states), options.limit);
  if (chosen.ids.length === 0) {
    say('No row of the outbox fits.');
    return;
  }
  const what = formatKinds(chosen);
  if (options.dryRun) {
    say(`Would ${act} ${what}. Nothing was changed.`);
    return;
  }
  const warning = act === 'discard' ? ' Nobody will receive what is discarded.' : '';
  await confirm(cli, printable(`${act === 'retry' ? 'Retry' : 'Discard'} ${what}?${warning}`), options.yes);
  await inBatches(cli, say, { act, ids: chosen.ids, reason: options.reason ?? null, states });
  if (chosen.ids.length === MOST_BULK_ROWS) say('That is the most for one call; call it again for the rest.');
}

async function inBatches(cli: Cli, say: (text: string) => void, order: RowOrder): Promise<void> {
  const database = cli.configuration.database();
  const sums = new Map<string, number>();
  const total = spokenCount(order.ids.length);
  let seen = 0;
  let toldAt = systemClock.now();
  const count = (answers: readonly Answer[]): void => {
    for (const { answer } of answers) sums.set(answer, (sums.get(answer) ?? 0) + 1);
    seen += answers.length;
    if (systemClock.now() - toldAt < PROGRESS_MS) return;
    toldAt = systemClock.now();
    cli.context.err(`${spokenCount(seen)} of ${total}\n`);
  };
  try {
    await actOnRows(database, order, count);
  } catch (error) {
    cli.context.err(`${spokenCount(seen)} of ${total} rows were handled before it failed; they stay so.\n`);
    throw error;
  }
  const told = [...sums].map(([answer, rows]) => `${spokenCount(rows)} ${answer}`);
  say(`${told.join(', ')}.`);
}

function messageId(raw: string): string {
  if (/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(raw)) return raw.toLowerCase();
  throw new InvalidArgumentError(`"${printable(raw.slice(0, 60))}" is not the id of a message (a UUID).`);
}

function messageIds(raw: string, before: readonly string[] = []): string[] {
  return [...before, messageId(raw)];
}

function duration(raw: string): number {
  const parsed = parseDuration(raw);
  if ('value' in parsed) return parsed.value;
  throw new InvalidArgumentError(`It ${parsed.problem}: ${parsed.mend}.`);
}

function rowCount(raw: string): number {
  if (/^[1-9]\d{0,5}$/.test(raw)) return Number(raw);
  throw new InvalidArgumentError('It is a whole number from 1 to 999999.');
}

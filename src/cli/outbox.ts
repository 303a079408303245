import { Option, type Command } from 'commander';
import {
  ACTS_ON,
  actOnRows,
  chooseRows,
  isDone,
  listOutbox,
  lookAtRows,
  showMessage,
  type RowAct,
  type RowFilter,
} from '../app/outbox-admin.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { actOnAll, actOnIds, thatIs, type BulkAct, type BulkOptions } from './bulk.js';
import { messageId, messageIds, moment, rate, rowCount } from './arguments.js';
import { EXIT } from './context.js';
import { formatList, formatMessage } from './outbox-text.js';
import type { Cli } from './program.js';
import { printable } from './text.js';

/** What narrows a list, as the command line gives it. */
interface FilterOptions {
  id?: string[];
  state?: string;
  type?: string;
  key?: string;
  error?: string;
  since?: RowFilter['since'];
  until?: RowFilter['until'];
  older?: RowFilter['until'];
  limit?: number;
}

type ActOptions = FilterOptions & BulkOptions & { asNew?: boolean };

const STATES = ['ready', 'scheduled', 'parked', 'blocked', 'cancelled', 'discarded'];
const LISTED_ROWS = 50;

const ACTS: Readonly<Record<RowAct, string>> = {
  retry: 'Publish rows that could not be published, now and with their attempts counted anew.',
  discard: 'Give held rows up: they are never published, and go to the history as discarded.',
  replay:
    'Publish messages once more that had been published, from the history (relay.history: full), under their own ids: consumers that had one ignore it.',
};

export function registerOutbox(program: Command, cli: Cli): void {
  const outbox = program
    .command('outbox')
    .description('Look at the rows of the outbox; retry, discard or replay them.');
  const say = (text: string): void => cli.context.out(`${printable(createTextRedactor()(text))}\n`);
  const sayJson = (value: unknown): void => cli.context.out(`${JSON.stringify(value, null, 2)}\n`);

  withFilters(outbox.command('list'), STATES, 'written')
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

  for (const act of Object.keys(ACTS) as RowAct[]) registerAct(outbox, cli, act);
}

function registerAct(outbox: Command, cli: Cli, act: RowAct): void {
  const replays = act === 'replay';
  const whichAll = replays
    ? 'every published message of the history that the filters let through, as it is now'
    : 'every row that the filters let through, as they are now; parked ones unless --state says else';
  const command = withFilters(outbox.command(act), ACTS_ON[act], replays ? 'published' : 'written')
    .argument('[ids...]', 'the ids of messages', messageIds)
    .description(ACTS[act])
    .option('--all', whichAll)
    .option('--dry-run', 'only show which rows it would be')
    .option('--yes', 'do not ask')
    .option('--rate <rows>', 'at most so many rows a second', rate)
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--json', 'as JSON');
  if (replays) command.option('--as-new', 'under new ids, so that consumers take them for other messages');
  command.action(async (given: string[] | undefined, options: ActOptions, self: Command) => {
    const ids = [...new Set(given)];
    const usage = usageProblem(ids, options);
    if (usage !== undefined) self.error(`error: ${usage}`);
    const work = workOf(cli, act, filterOf(options, options.all && !replays ? ['parked'] : undefined), options);
    if (ids.length > 0) await actOnIds(cli, work, ids, options);
    else await actOnAll(cli, work, options);
  });
}

function workOf(cli: Cli, act: RowAct, filter: RowFilter, options: ActOptions): BulkAct {
  const database = cli.configuration.database();
  const { reason = null, rate: rowsPerSecond, asNew = false, limit } = options;
  const warning = {
    retry: '',
    discard: 'Nobody will receive what is discarded.',
    replay: asNew
      ? 'With new ids, every consumer applies them again.'
      : 'Consumers receive them again, with the ids that they had.',
  }[act];
  return {
    name: act,
    warning,
    actsOn: ACTS_ON[act],
    nothingFits:
      act === 'replay' ? 'No published message of the history fits.' : `No row of the outbox${thatIs(filter)} fits.`,
    look: (ids) => lookAtRows(database, act, ids),
    choose: () => chooseRows(database, act, filter, limit),
    run: (ids, chosen, onBatch) => {
      const states = chosen && act !== 'replay' ? (filter.states ?? null) : null;
      return actOnRows(database, { act, ids, states, reason, rowsPerSecond, asNew }, onBatch);
    },
    isDone: (answer) => isDone(act, answer),
    // Copies have ids of their own; in sums they are one kind.
    kindOf: (answer) => (act === 'replay' && isDone(act, answer) ? 'replayed' : answer.answer),
  };
}

function withFilters(command: Command, states: readonly string[], did: 'written' | 'published'): Command {
  command
    .option('--id <id>', 'this message; may be repeated', messageIds)
    .addOption(new Option('--state <state>', 'in this state').choices(states))
    .option('--type <type>', 'of this type')
    .option('--key <key>', 'of this key');
  // The history keeps no errors.
  if (did === 'written') command.option('--error <text>', 'with this text in the error, in any case');
  return command
    .option('--since <when>', `${did} at most so long ago, such as 2h, or not before a date (UTC)`, moment)
    .option('--until <when>', `${did} longer ago than this, or before a date (UTC)`, moment)
    .addOption(new Option('--older <when>', 'the same as --until').argParser(moment).hideHelp())
    .option('--limit <rows>', 'at most so many', rowCount);
}

function filterOf(options: FilterOptions, states?: readonly string[]): RowFilter {
  const { id, state, type, key, error, since, until = options.older } = options;
  const wanted = state === undefined ? states : [state];
  return {
    ...(id === undefined ? {} : { ids: id }),
    ...(wanted === undefined ? {} : { states: wanted }),
    ...(type === undefined ? {} : { type }),
    ...(key === undefined ? {} : { key }),
    ...(error === undefined ? {} : { error }),
    ...(since === undefined ? {} : { since }),
    ...(until === undefined ? {} : { until }),
  };
}

function usageProblem(ids: readonly string[], options: ActOptions): string | undefined {
  if (ids.length === 0) return options.all ? undefined : 'give the ids of messages, or --all with filters';
  if (options.all) return 'give ids or --all, not both';
  const filters = ['id', 'state', 'type', 'key', 'error', 'since', 'until', 'older', 'limit'] as const;
  const given = filters.find((name) => options[name] !== undefined);
  return given === undefined ? undefined : `--${given} goes with --all, not with ids`;
}

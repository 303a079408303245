import { Option, type Command } from 'commander';
import {
  actOnMessages,
  assertConsumerKnown,
  chooseMessages,
  INBOX_ACTS_ON,
  isInboxDone,
  listInbox,
  lookAtMessages,
  showInbox,
  type InboxAct,
} from '../app/inbox-admin.js';
import type { RowFilter } from '../app/outbox-admin.js';
import { createTextRedactor } from '../telemetry/redact.js';
import { anyIds, duration, moment, rate, rowCount } from './arguments.js';
import { actOnAll, actOnIds, thatIs, type BulkAct, type BulkOptions } from './bulk.js';
import { EXIT } from './context.js';
import { formatInbox, formatInboxMessages } from './inbox-text.js';
import type { Cli } from './program.js';
import { printable } from './text.js';

/** What narrows a list of inbound messages, as the command line gives it. */
export interface InboxFilterOptions {
  id?: string[];
  consumer?: string;
  status?: string;
  deadReason?: string;
  type?: string;
  key?: string;
  error?: string;
  since?: RowFilter['since'];
  until?: RowFilter['until'];
  limit?: number;
}

type ActOptions = InboxFilterOptions & BulkOptions & { force?: boolean; for?: number };

const STATUSES = ['pending', 'running', 'waiting', 'blocked', 'done', 'dead', 'discarded'];
const LISTED_ROWS = 50;

const ACTS: Readonly<Record<InboxAct, string>> = {
  retry: 'Have one consumer try messages again that it failed on, now and with their attempts counted anew.',
  replay: 'Have one consumer handle messages again that it is through with; what it applied, only with --force.',
  discard: 'Give messages up for one consumer: they are not applied, and do not hold their key any more.',
  defer: 'Let messages wait for a time before one consumer tries them.',
};

export function registerInbox(program: Command, cli: Cli): void {
  const inbox = program.command('inbox').description('Look at inbound messages; retry, replay, discard or defer them.');
  registerList(inbox, cli, undefined);
  registerShow(inbox, cli);
  for (const act of Object.keys(ACTS) as InboxAct[]) registerInboxAct(inbox, cli, act, undefined);
}

/** The list of `inbox`, or with `status` the one of messages in that status alone; `instead` may answer by itself. */
export function registerList(
  parent: Command,
  cli: Cli,
  status: 'dead' | undefined,
  instead: (options: InboxFilterOptions & { json?: boolean }) => Promise<boolean> = () => Promise.resolve(false),
): Command {
  const command = withInboxFilters(parent.command('list'), status === undefined ? STATUSES : undefined)
    .description(
      status === undefined
        ? 'Show inbound messages in the order in which they came, of one status by consumer as it is their turn.'
        : 'Show what is dead.',
    )
    .option('--json', 'as JSON');
  return command.action(async (options: InboxFilterOptions & { json?: boolean }) => {
    await checkConsumer(cli, options.consumer);
    if (await instead(options)) return;
    const filter = inboxFilterOf(options, status === undefined ? undefined : [status]);
    const list = await listInbox(cli.configuration.database(), filter, options.limit ?? LISTED_ROWS);
    if (options.json) cli.context.out(`${JSON.stringify(list, null, 2)}\n`);
    else cli.context.out(`${printable(createTextRedactor()(formatInbox(list, new Date())))}\n`);
  });
}

/** One message at its consumers. */
export function registerShow(parent: Command, cli: Cli): void {
  parent
    .command('show')
    .argument('<id>', 'the id of a message')
    .description('Show one message at every consumer that has it, with its attempts.')
    .option('--consumer <name>', 'at this consumer alone')
    .option('--body', 'with its body')
    .option('--json', 'as JSON')
    .action(async (id: string, options: { consumer?: string; body?: boolean; json?: boolean }) => {
      await checkConsumer(cli, options.consumer);
      const records = await showInbox(cli.configuration.database(), id, options.consumer, options.body === true);
      if (records.length === 0) {
        cli.exitCode = EXIT.failed;
        cli.context.err(
          `waybill: no consumer${options.consumer === undefined ? '' : ' of that name'} has message ${printable(id)}.\n`,
        );
      } else if (options.json) cli.context.out(`${JSON.stringify(records, null, 2)}\n`);
      else cli.context.out(`${printable(createTextRedactor()(formatInboxMessages(records)))}\n`);
    });
}

/** An act of `inbox`, or with `status` one on messages in that status alone. */
export function registerInboxAct(parent: Command, cli: Cli, act: InboxAct, status: 'dead' | undefined): void {
  const states = { replay: 'applied ones', defer: 'those that are not dead', retry: 'dead ones', discard: 'dead ones' }[
    act
  ];
  const command = withInboxFilters(parent.command(act), status === undefined ? INBOX_ACTS_ON[act] : undefined)
    .argument('[ids...]', 'the ids of messages')
    .description(ACTS[act])
    .option('--all', `every message that the filters let through now; ${states} unless --status says else`)
    .option('--dry-run', 'only show which messages it would be')
    .option('--yes', 'do not ask')
    .option('--rate <rows>', 'at most so many messages a second', rate)
    .option('--reason <text>', 'why; kept in the action_log')
    .option('--json', 'as JSON');
  if (act === 'replay')
    command.option('--force', 'also what was applied: its effect comes twice, unless the handler knows');
  if (act === 'defer') command.requiredOption('--for <duration>', 'how long from now, such as 30m', duration);
  command.action(async (given: string[], options: ActOptions, self: Command) => {
    const ids = [...new Set(given)];
    const usage = usageProblem(ids, options);
    if (usage !== undefined) self.error(`error: ${usage}`);
    await checkConsumer(cli, options.consumer);
    const fallback = { retry: ['dead'], discard: ['dead'], replay: ['done'], defer: ['pending', 'waiting'] }[act];
    const filter = inboxFilterOf(options, status === undefined ? fallback : [status]);
    const work = workOf(cli, act, options.consumer ?? '', filter, options);
    if (ids.length > 0) await actOnIds(cli, work, ids, options);
    else await actOnAll(cli, work, options);
  });
}

/** A consumer that nobody knows is a wrong name, not one for which nothing is there. */
export async function checkConsumer(cli: Cli, consumer: string | undefined): Promise<void> {
  if (consumer === undefined) return;
  const { configuration } = cli;
  await assertConsumerKnown(configuration.database(), consumer, configuration.consumerNames());
}

function workOf(cli: Cli, act: InboxAct, consumer: string, filter: RowFilter, options: ActOptions): BulkAct {
  const database = cli.configuration.database();
  const { reason = null, rate: rowsPerSecond, force = false, limit } = options;
  const warning = {
    retry: '',
    discard: `${printable(consumer)} will not apply what is discarded.`,
    replay: force ? `${printable(consumer)} applies them a second time.` : '',
    defer: '',
  }[act];
  return {
    name: act,
    warning,
    actsOn: INBOX_ACTS_ON[act],
    nothingFits: `No message of the inbox${thatIs(filter)} fits.`,
    look: (ids) => lookAtMessages(database, consumer, ids),
    choose: () => chooseMessages(database, filter, limit),
    run: (ids, chosen, onBatch) => {
      const statuses = chosen ? (filter.states ?? null) : null;
      const delayMs = options.for ?? 0;
      return actOnMessages(database, { act, consumer, ids, reason, statuses, force, delayMs, rowsPerSecond }, onBatch);
    },
    isDone: (answer) => isInboxDone(act, answer),
    kindOf: ({ answer }) => answer,
  };
}

/** The options that narrow a list of inbound messages; without statuses there is no choice of them. */
export function withInboxFilters(command: Command, statuses: readonly string[] | undefined): Command {
  if (statuses !== undefined) command.addOption(new Option('--status <status>', 'in this status').choices(statuses));
  const did = statuses === undefined ? 'died' : 'received';
  return command
    .option('--consumer <name>', 'of this consumer')
    .option('--id <id>', 'this message; may be repeated', anyIds)
    .option('--dead-reason <word>', 'dead for this reason, such as attempts')
    .option('--type <type>', 'of this type')
    .option('--key <key>', 'of this key')
    .option('--error <text>', 'with this text in the error, in any case')
    .option('--since <when>', `${did} at most so long ago, such as 2h, or not before a date (UTC)`, moment)
    .option('--until <when>', `${did} longer ago than this, or before a date (UTC)`, moment)
    .option('--limit <rows>', 'at most so many', rowCount);
}

/** The filter that the options say; `states` where they say none. */
export function inboxFilterOf(options: InboxFilterOptions, states: readonly string[] | undefined): RowFilter {
  const { id, consumer, status, deadReason, type, key, error, since, until } = options;
  const wanted = status === undefined ? states : [status];
  return {
    ...(id === undefined ? {} : { ids: id }),
    ...(consumer === undefined ? {} : { consumer }),
    ...(wanted === undefined ? {} : { states: wanted }),
    ...(deadReason === undefined ? {} : { deadReason }),
    ...(type === undefined ? {} : { type }),
    ...(key === undefined ? {} : { key }),
    ...(error === undefined ? {} : { error }),
    ...(since === undefined ? {} : { since }),
    ...(until === undefined ? {} : { until }),
  };
}

function usageProblem(ids: readonly string[], options: ActOptions): string | undefined {
  if (options.consumer === undefined) return 'give --consumer: an act is for one consumer alone';
  if (ids.length === 0) return options.all ? undefined : 'give the ids of messages, or --all with filters';
  if (options.all) return 'give ids or --all, not both';
  const filters = ['id', 'status', 'deadReason', 'type', 'key', 'error', 'since', 'until', 'limit'] as const;
  const given = filters.find((name) => options[name] !== undefined);
  return given === undefined
    ? undefined
    : `--${given === 'deadReason' ? 'dead-reason' : given} goes with --all, not with ids`;
}

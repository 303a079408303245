import { Option, type Command } from 'commander';
import { collectStatus, type Activity, type Status } from '../app/status.js';
import { counted } from '../core/counted.js';
import { spoken } from '../core/spoken.js';
import { systemClock } from '../runtime/clock.js';
import { createJsonRedactor, createTextRedactor } from '../telemetry/redact.js';
import { interval } from './arguments.js';
import { EXIT } from './context.js';
import { NO_AGE, oldestText } from './inbox-text.js';
import type { Cli } from './program.js';
import { aligned, columns, printable, spokenBytes, spokenCount, wrapped } from './text.js';
import { repeat } from './watch.js';

/** While watching, the broker is asked this seldom: each time is a connection in its log. */
const BROKER_INTERVAL_MS = 15_000;

interface StatusOptions {
  json?: boolean;
  check?: boolean;
  watch?: boolean;
  interval: number;
}

export function registerStatus(program: Command, cli: Cli): void {
  program
    .command('status')
    .description('Show the relay, its backlog and what is wrong, each problem with the next command to type.')
    .option('--json', 'as JSON, in a stable shape')
    .addOption(new Option('--check', 'exit code 4 if there is any problem').conflicts('watch'))
    .option('--watch', 'again and again until Ctrl-C; in place on a terminal, with --json one line each')
    .addOption(new Option('--interval <duration>', 'how often with --watch').argParser(interval).default(2_000, '2s'))
    .action((options: StatusOptions) => (options.watch ? watch(cli, options) : once(cli, options)));
}

async function once(cli: Cli, { json, check }: StatusOptions): Promise<void> {
  const status = await collectStatus(cli.configuration.whole());
  const text = json ? createJsonRedactor()(status, 2) : printable(createTextRedactor()(formatStatus(status)));
  cli.context.out(`${text}\n`);
  if (check && status.problems.length > 0) cli.exitCode = EXIT.check;
}

function watch(cli: Cli, { json, interval: intervalMs }: StatusOptions): Promise<void> {
  const redact = createTextRedactor();
  let broker: { known: Status['broker']; atMs: number } | undefined;
  return repeat(cli.context, systemClock, intervalMs, async () => {
    const nowMs = systemClock.now();
    if (broker && nowMs - broker.atMs >= BROKER_INTERVAL_MS) broker = undefined;
    const status = await collectStatus(cli.configuration.whole(), { broker: broker?.known });
    // One that could not be reached is asked again at once.
    if (!status.broker.error) broker ??= { known: status.broker, atMs: nowMs };
    if (json) return createJsonRedactor()(status);
    const head = `waybill status at ${status.at.slice(11, 19)} UTC, every ${intervalMs / 1000} s; Ctrl-C ends it`;
    return printable(redact(`${head}\n\n${formatStatus(status)}\n`));
  });
}

const WIDTH = 80;
const SHOWN_EXCHANGES = 3;

const ACTIVITY: Readonly<Record<Activity, string>> = {
  active: 'active',
  starting: 'starting (holds the lock or the slot, not both yet)',
  stopped: 'NOT RUNNING',
  unknown: 'not known: who holds the lock cannot be asked',
};

/** The status as a person reads it: facts in aligned lines, then the problems. */
export function formatStatus(status: Status): string {
  const rows: [string, string][] = [
    ['relay', relayLine(status)],
    ...liveRows(status),
    ...recordRows(status),
    ...slotRows(status),
    ...backlogRows(status),
    ...consumerRows(status),
    ['broker', brokerLine(status)],
    ['schema', schemaLine(status)],
  ];
  // Why the next command is not broken: it is to be copied.
  const problems = status.problems.map(
    ({ problem, next }) => `  - ${wrapped(problem, WIDTH - 4).join('\n    ')}\n    next: ${next}`,
  );
  const verdict = problems.length === 0 ? 'No problems.' : `PROBLEMS\n${problems.join('\n')}`;
  return `${aligned(fitted(rows))}\n\n${verdict}`;
}

/** Values that are too wide go on in the next line, a little further in. */
function fitted(rows: readonly (readonly [string, string])[]): [string, string][] {
  const width = WIDTH - 2 - Math.max(...rows.map(([label]) => label.length));
  return rows.flatMap(([label, value]) =>
    wrapped(value, width, '  ').map((line, index): [string, string] => [index === 0 ? label : '', line]),
  );
}

function relayLine({ relay, relayEnabled, schema, activity }: Status): string {
  if (relayEnabled) return `${relay} of schema ${schema}: ${ACTIVITY[activity]}`;
  const elsewhere = activity === 'active' || activity === 'starting' ? '; another process runs one' : '';
  return `none in this configuration (relay: false)${elsewhere}`;
}

/** What the running process says of itself. */
function liveRows({ live, activity: now }: Status): [string, string][] {
  if (!live) {
    const isElsewhere = now === 'active' || now === 'starting';
    return isElsewhere ? [['live', 'no answer at admin.listen (off, or on another machine)']] : [];
  }
  const { throughput, phase, phaseForSeconds, inFlight, maxInFlight, unsettled, counters, narrow } = live;
  const routes = live.unusableExchanges.slice(0, SHOWN_EXCHANGES);
  const each = (rate: number | null) => (rate === null ? '-' : spokenCount(Math.round(rate)));
  const window = narrow ? '1, because RabbitMQ stalled' : spokenCount(maxInFlight);
  return [
    ['live', `${phase} for ${spoken(phaseForSeconds * 1000)}${live.ready ? '' : `; NOT READY: ${live.reason ?? '?'}`}`],
    ['', `${each(throughput.over10s)} messages/s over 10 s, ${each(throughput.over60s)} over 1 min`],
    ['', `in flight ${spokenCount(inFlight)} of ${window}, unsettled ${spokenCount(unsettled)}`],
    ['', `since its start: published ${spokenCount(counters.published)}, resent ${spokenCount(counters.resent)}`],
    ...routes.map(({ reason, askedSecondsAgo }, index): [string, string] => [
      index === 0 ? 'routes' : '',
      `${reason} (seen ${spoken(askedSecondsAgo * 1000)} ago)`,
    ]),
  ];
}

function recordRows({ record, at }: Status): [string, string][] {
  if (!record) return [];
  const since = record.holderSince ? ` since ${spoken(Date.parse(at) - record.holderSince.getTime())}` : '';
  const position =
    record.checkpointLsn === null
      ? 'none yet; the table is read before the stream'
      : `${record.checkpointLsn}, ${record.checkpointAgeMs === null ? 'age unknown' : `${spoken(record.checkpointAgeMs)} ago`}`;
  const ownDeletes: [string, string][] = record.insertThenDeleteSeen
    ? [['own deletes', 'applications delete rows themselves; unpublished ones are in the slot alone (waybill doctor)']]
    : [];
  return [
    ['last holder', record.holder === null ? 'nobody yet' : `${record.holder}${since} (epoch ${record.epoch})`],
    ['checkpoint', position],
    ...ownDeletes,
  ];
}

function slotRows({ slot, slotName, record, relayEnabled }: Status): [string, string][] {
  if (slotName === null || record?.source === 'table' || (!relayEnabled && !slot)) return [];
  if (!slot) return [['slot', `${slotName}: does not exist`]];
  const reader = slot.active ? `read by server process ${slot.activePid ?? '?'}` : 'nobody reads it';
  const limit = slot.safeWalBytes === null ? '' : `, ${spokenBytes(slot.safeWalBytes)} more before it is lost`;
  return [
    ['slot', `${slot.name}: ${reader}`],
    [
      '',
      `unconfirmed ${bytes(slot.lagBytes)}, WAL kept ${bytes(slot.keptWalBytes)} (${slot.walStatus ?? 'status unknown'}${limit})`,
    ],
  ];
}

function backlogRows({ backlog, parkedErrors }: Status): [string, string][] {
  if (!backlog) return [];
  const size = `table ${spokenBytes(backlog.tableBytes)}`;
  const { rows, bytes: historyBytes, partitions } = backlog.history;
  const history: [string, string] = [
    'history',
    `about ${counted(rows, 'row')}, ${spokenBytes(historyBytes)} in ${counted(partitions, 'partition')}`,
  ];
  if (backlog.states.length === 0) return [['backlog', `empty (${size})`], history];
  const lines = columns(
    backlog.states.map(({ state, count, accuracy, oldestAgeMs }) => [
      state,
      `${accuracy === 'exact' ? '' : `${accuracy.replace('-', ' ')} `}${spokenCount(count)}`,
      oldestAgeMs === null ? '' : `oldest ${spoken(oldestAgeMs)}`,
    ]),
  ).split('\n');
  const errors = parkedErrors.map(({ error, count, exampleId, exampleType }): [string, string] => [
    '',
    `${spokenCount(count)} x ${error} (such as ${exampleType} ${exampleId})`,
  ]);
  return [
    ['backlog', lines[0] ?? ''],
    ...lines.slice(1).map((line): [string, string] => ['', line]),
    ['', `(${size})`],
    ...errors.map(([, text], index): [string, string] => [index === 0 ? 'parked' : '', text]),
    history,
  ];
}

function consumerRows({ consumers }: Status): [string, string][] {
  if (!consumers || consumers.length === 0) return [];
  const lines = columns(
    consumers.map(({ name, owner, states }) => [
      name,
      owner ?? '',
      states === null
        ? 'too many to count in time'
        : [
            states
              .map(
                ({ state, count, accuracy }) =>
                  `${state} ${accuracy === 'exact' ? '' : 'at least '}${spokenCount(count)}`,
              )
              .join(', ') || 'nothing waits',
            ...sinceText(states),
          ].join('; '),
    ]),
  ).split('\n');
  const all = consumers.flatMap(({ name, pausedAt, pausedBy, pausedReason, renamingTo }, index) => {
    const line = lines[index] ?? '';
    if (renamingTo !== null) return [line, `${name} is HALF RENAMED to ${renamingTo}`];
    const said = pausedBy === 'breaker' ? `the handler of ${name} is BROKEN` : `${name} is PAUSED`;
    return pausedAt === null ? [line] : [line, `${said}${pausedReason === null ? '' : `: ${pausedReason}`}`];
  });
  return all.map((line, index): [string, string] => [index === 0 ? 'consumers' : '', line]);
}

function sinceText(states: Parameters<typeof oldestText>[0]['states']): string[] {
  const oldest = oldestText({ states });
  return oldest === NO_AGE ? [] : [`oldest ${oldest}`];
}

function brokerLine({ broker }: Status): string {
  if (!broker.facts) return 'NOT REACHABLE';
  const { version, cluster, vhost, exchange } = broker.facts;
  const state = { fits: 'is there', missing: 'is not there yet', differs: 'DIFFERS', refused: 'MAY NOT BE USED' }[
    exchange
  ];
  return `RabbitMQ ${version}, ${cluster}, virtual host ${vhost}; exchange ${broker.exchange} ${state}`;
}

function schemaLine({ database }: Status): string {
  if (database.schemaVersion === null) return 'NOT REACHABLE';
  if (database.schemaVersion === 0) return 'NOT INSTALLED';
  return `version ${database.schemaVersion}, this program needs ${database.neededSchemaVersion} (database ${database.name ?? '?'})`;
}

function bytes(amount: number | null): string {
  return amount === null ? 'unknown' : spokenBytes(amount);
}

import {
  GROUPED_ROWS,
  type ConsumerEntry,
  type DeadGroup,
  type InboxMessageRecord,
  type InboxRow,
} from '../app/inbox-admin.js';
import { spoken } from '../core/spoken.js';
import { cell } from './outbox-text.js';
import { aligned, columns, printable, spokenBytes, spokenCount, wrapped } from './text.js';

const WIDTH = 80;
const ID_WIDTH = 36;
const BLANKS = 2;
const SHORTEST_NAME = 8;

/** Rows of the inbox: a line for each, and one more for what is known of it. */
export function formatInbox({ rows, more }: { rows: readonly InboxRow[]; more: boolean }, now: Date): string {
  if (rows.length === 0) return 'No message of the inbox fits.';
  const ages = rows.map(({ receivedAt }) => spoken(now.getTime() - receivedAt.getTime()));
  const consumerWidth = Math.min(16, Math.max(8, ...rows.map(({ consumer }) => consumer.length)));
  const table = columns([
    ['ID', 'CONSUMER', 'STATUS', 'AGE'],
    ...rows.map((row, n) => [
      cell(row.messageId, ID_WIDTH),
      cell(row.consumer, consumerWidth),
      row.status,
      ages[n] ?? '',
    ]),
  ]).split('\n');
  const lines = rows.flatMap((row, n) => {
    const tries = row.failures + row.abandoned;
    const parts = [
      cell(row.type ?? '', 30),
      row.key === null ? '' : `key ${cell(row.key, 24)}`,
      row.deadReason ?? '',
      tries === 0 ? '' : `${spokenCount(tries)} failed`,
      row.status === 'waiting' && row.nextAttemptAt ? dueText(row.nextAttemptAt, now) : '',
      row.error ?? '',
    ];
    const remark = cell(parts.filter((part) => part !== '').join('; '), WIDTH - 4);
    // Why not cut: it is to be copied into the next command.
    const whole = row.messageId.length <= ID_WIDTH ? [] : [`    id ${idText(row.messageId)}`];
    return [table[n + 1] ?? '', ...whole, ...(remark === '' ? [] : [`    ${remark}`])];
  });
  const end = more ? [`More fit than the ${spokenCount(rows.length)} shown; --limit shows more of them.`] : [];
  return [table[0], ...lines, ...end].join('\n');
}

function idText(id: string): string {
  return printable(id).replaceAll('\n', ' ');
}

function dueText(at: Date, now: Date): string {
  const ms = at.getTime() - now.getTime();
  return ms <= 0 ? 'due now' : `due in ${spoken(ms)}`;
}

/** All that is known of a message at its consumers; its body only if it was asked for. */
export function formatInboxMessages(records: readonly InboxMessageRecord[]): string {
  return records.map(messageText).join('\n\n');
}

function messageText({ content, attempts, body, ...row }: InboxMessageRecord): string {
  const at = (time: Date | null): string | null => time && time.toISOString();
  const headers = JSON.stringify(content.headers ?? {});
  const facts: [string, string | number | null][] = [
    ['id', row.messageId],
    ['original id', row.originalId],
    ['status', row.status],
    ['dead because', row.deadReason],
    ['error', row.error],
    ['failed', row.failures],
    ['abandoned', row.abandoned],
    ['next attempt', row.status === 'waiting' ? at(row.nextAttemptAt) : null],
    ['handled by', row.lockedBy],
    ['until', at(row.leaseUntil)],
    ['type', row.type],
    ['key', row.key],
    ['schema version', row.schemaVersion],
    ['received', at(row.receivedAt)],
    ['ended', at(row.processedAt)],
    ['result', content.result],
    ['redacted', at(content.redactedAt)],
    ['occurred', at(content.occurredAt)],
    ['exchange', content.exchange === '' ? '(the default exchange)' : content.exchange],
    ['routing key', content.routingKey],
    ['content type', content.contentType],
    ['encoding', content.contentEncoding],
    ['correlation id', content.correlationId],
    ['causation id', content.causationId],
    ['reply to', content.replyTo],
    ['app id', content.appId],
    ['traceparent', content.traceparent],
    ['headers', headers === '{}' ? null : headers],
    ['size', row.size === null ? 'the body is gone' : spokenBytes(row.size)],
  ];
  const known = facts.flatMap(([label, value]): [string, string][] =>
    value === null ? [] : [[label, printable(String(value)).replaceAll('\n', ' ')]],
  );
  const tries = attempts.map(({ number, at: when, verdict, error }) =>
    cell(`${when.toISOString()}  ${number}  ${verdict ?? ''}  ${error ?? ''}`, WIDTH - 2),
  );
  const parts = [
    `At consumer ${printable(row.consumer)}\n${aligned(known, '  ')}`,
    tries.length === 0 ? '' : `Attempts\n${tries.map((line) => `  ${line}`).join('\n')}`,
    body === undefined
      ? ''
      : body === null
        ? 'The body is gone.'
        : body.encoding === 'text'
          ? printable(body.data)
          : `base64: ${body.data}`,
  ];
  return parts.filter((part) => part !== '').join('\n\n');
}

/** The dead by what they have in common, each group with the command that would try it again. */
export function formatGroups(groups: readonly DeadGroup[], by: 'error' | 'type' | 'id', now: Date): string {
  if (groups.length === 0) return 'Nothing is dead.';
  const lines = groups.map(({ consumer, reason, common, count, firstAt, lastAt, exampleId, isCut }) => {
    const ages = `oldest ${spoken(now.getTime() - firstAt.getTime())}, newest ${spoken(now.getTime() - lastAt.getTime())} ago`;
    const head = `${spokenCount(count)}${isCut ? '+' : ''} at ${cell(consumer, 30)}${reason === null ? '' : ` (${reason})`}; ${ages}`;
    const text = common ?? (by === 'error' ? 'no error is recorded' : `no ${by}`);
    return [cell(head, WIDTH), `    ${cell(text, WIDTH - 4)}`, `    id ${idText(exampleId)}`].join('\n');
  });
  const cut = `+ among the latest ${spokenCount(GROUPED_ROWS)} of that consumer; older ones were not looked at.`;
  return [...lines, ...(groups.some(({ isCut }) => isCut) ? [cut] : [])].join('\n');
}

/** `1,000+`: there are more, which were not counted; `?`: nothing could be counted in time. */
function countText({ states }: ConsumerEntry, status: string): string {
  if (states === null) return '?';
  const found = states.find(({ state }) => state === status);
  return `${spokenCount(found?.count ?? 0)}${found && found.accuracy !== 'exact' ? '+' : ''}`;
}

/** Where there is nothing to be old. */
export const NO_AGE = '-';

/** Since when the oldest message is unfinished; dead ones are finished. */
export function oldestText({ states }: Pick<ConsumerEntry, 'states'>): string {
  if (states === null) return '?';
  const ages = states.flatMap(({ state, oldestAgeMs }) => (state === 'dead' ? [] : [oldestAgeMs ?? 0]));
  return ages.length === 0 ? NO_AGE : spoken(Math.max(...ages));
}

/** The consumers with their backlog. */
export function formatConsumers(consumers: readonly ConsumerEntry[]): string {
  if (consumers.length === 0) return 'No consumer is registered; `waybill run` registers those of its configuration.';
  const facts = [
    ['HANDLER', 'PENDING', 'RUNNING', 'WAITING', 'BLOCKED', 'DEAD', 'OLDEST'],
    ...consumers.map((one) => [
      one.handler,
      ...['pending', 'running', 'waiting', 'blocked', 'dead'].map((status) => countText(one, status)),
      oldestText(one),
    ]),
  ];
  const widest = Math.max(
    ...columns(facts)
      .split('\n')
      .map((line) => line.length),
  );
  const nameWidth = Math.max(SHORTEST_NAME, WIDTH - widest - BLANKS);
  const names = ['CONSUMER', ...consumers.map(({ name }) => cell(name, nameWidth))];
  const table = columns(facts.map((row, n) => [names[n] ?? '', ...row])).split('\n');
  const lines = consumers.flatMap((one, n) => {
    const parts = [
      // Whole where it is cut above: commands ask for it.
      one.name.length > nameWidth ? `consumer ${one.name}` : '',
      one.owner === null ? '' : `owner ${one.owner}`,
      `queue ${one.queue}`,
      one.ordering === 'key' ? 'ordered by key' : '',
    ];
    const known = parts.filter((part) => part !== '').map((part) => cell(part, WIDTH - 5));
    const about = wrapped(known.join('; '), WIDTH - 4).map((line) => `    ${line}`);
    const paused =
      one.pausedAt === null
        ? []
        : wrapped(
            printable(
              `${one.pausedBy === 'breaker' ? 'BROKEN handler' : `PAUSED by ${one.pausedActor ?? one.pausedBy ?? ''}`} since ${one.pausedAt.toISOString()}: ${one.pausedReason ?? 'no reason given'}`,
            ).replaceAll('\n', ' '),
            WIDTH - 4,
          ).map((line) => `    ${line}`);
    const renamed =
      one.renamingTo === null
        ? []
        : [
            '    HALF RENAMED; go on with it, or take it back with --cancel:',
            `    waybill consumer rename ${printable(one.name)} ${printable(one.renamingTo)}`,
          ];
    return [table[n + 1] ?? '', ...about, ...renamed, ...paused];
  });
  return [table[0], ...lines].join('\n');
}

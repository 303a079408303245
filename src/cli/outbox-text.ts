import type { Answer, MessageRecord, MessageRow, OutboxList, RowSnapshot } from '../app/outbox-admin.js';
import { spoken } from '../core/spoken.js';
import { aligned, columns, printable, spokenBytes, spokenCount } from './text.js';

/** Lines of lists are at most so long. */
const WIDTH = 80;
const BLANKS = 2;
const UUID_WIDTH = 36;
/** Most kinds of rows that are told one by one. */
const MOST_KINDS = 10;

/** What was written by others, as one line without anything that a terminal would obey, at most `width` long. */
export function cell(text: string, width: number): string {
  // Why cut first: an error may be long, and only its beginning is looked at.
  const line = printable(text.slice(0, width * 2 + 2).replaceAll(/\s+/g, ' ')).trim();
  const signs = Array.from(line);
  return signs.length <= width ? line : `${signs.slice(0, Math.max(0, width - 1)).join('')}…`;
}

/** Rows as a person reads them: a line for each, and one more for its key and why and how long it is held. */
export function formatList({ rows, more }: OutboxList): string {
  if (rows.length === 0) return 'No row of the outbox fits.';
  const ages = rows.map(({ ageMs }) => spoken(ageMs));
  const widths = [
    UUID_WIDTH,
    Math.max(5, ...rows.map(({ state }) => state.length)),
    Math.max(3, ...ages.map((age) => age.length)),
  ];
  const left = WIDTH - widths.reduce((sum, width) => sum + width + BLANKS, 0);
  const table = columns([
    ['ID', 'STATE', 'AGE', 'TYPE'],
    ...rows.map((row, n) => [row.id, row.state, ages[n] ?? '', cell(row.type, left)]),
  ]).split('\n');
  const lines = rows.flatMap((row, n) => [table[n + 1] ?? '', ...remarks(row)]);
  const end = more ? [`More fit than the ${spokenCount(rows.length)} shown; --limit shows more of them.`] : [];
  return [table[0], ...lines, ...end].join('\n');
}

function remarks({ key, attempts, dueInMs, error }: OutboxList['rows'][number]): string[] {
  const due = dueInMs === null ? '' : dueInMs <= 0 ? 'due now' : `due in ${spoken(dueInMs)}`;
  const parts = [
    key === null ? '' : `key ${cell(key, 30)}`,
    attempts === 0 ? '' : `${spokenCount(attempts)} ${attempts === 1 ? 'try' : 'tries'}`,
    due,
    error ?? '',
  ];
  const line = cell(parts.filter((part) => part !== '').join('; '), WIDTH - 4);
  return line === '' ? [] : [`    ${line}`];
}

/** All that is known of one message; its body only if it was asked for. */
export function formatMessage({ outbox, history, actions }: MessageRecord): string {
  const parts = [
    ...(outbox ? [`In the outbox\n${messageLines(outbox)}`] : []),
    ...(history ?? []).map((row) => `In the history\n${messageLines(row)}`),
    ...((actions?.length ?? 0) > 0 ? [`What operators did\n${actionLines(actions ?? [])}`] : []),
  ];
  if (history === null)
    parts.push('The history was not looked at: this role may not read it (see operator in sql/roles.sql).');
  return parts.join('\n\n');
}

function messageLines(row: MessageRow): string {
  const at = (time: Date | null): string | null => time && time.toISOString();
  const facts: [string, string | number | null][] = [
    ['id', row.id],
    ['state', row.state],
    ['error', row.error],
    ['attempts', row.attempts],
    ['next attempt', at(row.nextAttemptAt)],
    ['type', row.type],
    ['key', row.key],
    ['schema version', row.schemaVersion],
    ['exchange', row.exchange],
    ['routing key', row.routingKey],
    ['written', at(row.createdAt)],
    ['occurred', at(row.occurredAt)],
    ['not before', at(row.deliverAt)],
    ['not after', at(row.expiresAt)],
    ['published', at(row.publishedAt)],
    ['left the outbox', at(row.settledAt)],
    ['content type', row.contentType],
    ['encoding', row.contentEncoding],
    ['priority', row.priority],
    ['correlation id', row.correlationId],
    ['causation id', row.causationId],
    ['reply to', row.replyTo],
    ['traceparent', row.traceparent],
    ['tracestate', row.tracestate],
    ['headers', headersText(row.headers)],
    ['size', row.size === null ? null : spokenBytes(row.size)],
    ['sha-256', row.sha256],
  ];
  const lines = aligned(
    facts.flatMap(([label, value]): [string, string][] =>
      value === null ? [] : [[label, printable(String(value)).replaceAll('\n', ' ')]],
    ),
    '  ',
  );
  return row.body === undefined ? lines : `${lines}\n\n${bodyText(row)}`;
}

function headersText(headers: unknown): string | null {
  const text = JSON.stringify(headers ?? {});
  return text === '{}' ? null : text;
}

function bodyText({ body, size }: MessageRow): string {
  if (!body) return size === 0 ? 'The body is empty.' : 'The body is not kept (relay.history: full keeps it).';
  if (body.encoding === 'text') return printable(body.data);
  const bytes = Buffer.from(body.data, 'base64');
  const text = bytes.toString('utf8');
  return Buffer.from(text, 'utf8').equals(bytes) ? printable(text) : `base64: ${body.data}`;
}

function actionLines(actions: NonNullable<MessageRecord['actions']>): string {
  return columns(
    actions.map(({ at, actor, action, reason }) => [
      at.toISOString(),
      action,
      cell(actor, 63),
      reason === null ? '' : printable(reason).replaceAll('\n', ' '),
    ]),
    '  ',
  );
}

/** `1,234 rows: 1,200 parked order.paid, 34 parked order.placed`. */
export function formatKinds({ kinds, ids }: RowSnapshot): string {
  const told = kinds
    .slice(0, MOST_KINDS)
    .map(({ state, type, count }) => `${spokenCount(count)} ${state} ${cell(type, 40)}`);
  const others = kinds.slice(MOST_KINDS).reduce((sum, { count }) => sum + count, 0);
  if (others > 0) told.push(`${spokenCount(others)} of other kinds`);
  return `${spokenCount(ids.length)} ${ids.length === 1 ? 'row' : 'rows'}: ${told.join(', ')}`;
}

/** A line for each row: its id and what became of it. */
export function formatAnswers(answers: readonly Answer[]): string {
  return columns(answers.map(({ id, answer }) => [printable(id).replaceAll('\n', ' '), answer]));
}

/** A moment as an operator gives it: so long ago by the database's clock, or a date. */
export type Moment = { agoMs: number } | { at: Date };

/** Which messages are meant; what is left out does not narrow. */
export interface RowFilter {
  ids?: readonly string[];
  states?: readonly string[];
  type?: string;
  key?: string;
  /** A part of the error, in any case. */
  error?: string;
  /** Not before this. */
  since?: Moment;
  /** Before this. */
  until?: Moment;
  /** Of the inbox: the consumer. */
  consumer?: string;
  /** Of the inbox: why it is dead. */
  deadReason?: string;
}

/** What the parts of a filter are called in a table; without `error` the table keeps none. */
export interface FilterColumns {
  state: string;
  error: string | null;
  time: string;
  /** The ids are texts, under this name; otherwise they are UUIDs. */
  textId?: string;
}

const OUTBOX: FilterColumns = { state: 'o.state', error: 'o.last_error', time: 'o.created_at' };

/** A condition in SQL with its parameters, and the time before which nothing is meant, as SQL, if there is one. */
export interface Condition {
  sql: string;
  values: unknown[];
  since: string | undefined;
}

/** The condition of a filter, with its parameters numbered from 1. The table is `o`. */
export function conditionOf(filter: RowFilter, columns: FilterColumns = OUTBOX): Condition {
  const parts: string[] = [];
  const values: unknown[] = [];
  const add = (value: unknown, part: (parameter: string) => string): void => {
    if (value === undefined) return;
    values.push(value);
    parts.push(part(`$${values.length}`));
  };
  const addMoment = (moment: Moment | undefined, comparison: string): string | undefined => {
    if (moment === undefined) return undefined;
    values.push('at' in moment ? moment.at : moment.agoMs);
    const parameter = `$${values.length}`;
    const time =
      'at' in moment
        ? `${parameter}::timestamptz`
        : `(statement_timestamp() - ${parameter}::float8 * interval '1 millisecond')`;
    parts.push(`${columns.time} ${comparison} ${time}`);
    return time;
  };
  const { textId } = columns;
  add(filter.ids, (parameter) =>
    textId === undefined ? `o.id = any(${parameter}::uuid[])` : `${textId} = any(${parameter}::text[])`,
  );
  add(filter.consumer, (parameter) => `o.consumer = ${parameter}`);
  add(filter.deadReason, (parameter) => `o.dead_reason = ${parameter}`);
  add(filter.states, (parameter) => `${columns.state} = any(${parameter}::text[])`);
  add(filter.type, (parameter) => `o.type = ${parameter}`);
  add(filter.key, (parameter) => `o.key = ${parameter}`);
  if (columns.error !== null) {
    const { error } = columns;
    add(filter.error, (parameter) => `strpos(lower(${error}), lower(${parameter})) > 0`);
  }
  const since = addMoment(filter.since, '>=');
  addMoment(filter.until, '<');
  return { sql: parts.length === 0 ? 'true' : parts.join(' and '), values, since };
}

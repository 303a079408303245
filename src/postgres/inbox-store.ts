import type pg from 'pg';
import type { InboundRow } from '../core/delivery.js';
import type { Verdict } from '../core/verdict.js';
import { sqlState } from './errors.js';
import { quoteSchema } from './schema-name.js';

/** Lends a connection for one piece of work at a time; maps errors by toInboxError. */
export interface Lending {
  use<T>(doing: string, work: (client: pg.Client) => Promise<T>): Promise<T>;
}

interface Arrival {
  row: InboundRow;
  failed?: string;
  hold?: boolean;
}

type Settlement = Verdict | { kind: 'release'; error: string };

interface Outcome {
  seq: bigint;
  status: string;
  verdict: Settlement['kind'] | 'lost' | null;
  attempt: number | null;
  dueInMs: number | null;
  deadReason: string | null;
  error: string | null;
  hasReleased: boolean;
}

interface ReceivedRow extends Outcome {
  outcome: 'inserted' | 'duplicate' | 'conflict';
}

/** What the functions answer, with the time that is left instead of a time of day: our clock may be wrong (F118). */
interface OutcomeRow {
  seq: string;
  status: string;
  verdict: Outcome['verdict'];
  attempt: number | null;
  due_in_ms: number | null;
  dead_reason: string | null;
  error: string | null;
  released: string | null;
}

/** By statement_timeout: an sql handler took too long. */
const STATEMENT_CANCELLED = '57014';
const DUE_IN_MS = `(extract(epoch from r.next_attempt_at operator(pg_catalog.-) pg_catalog.clock_timestamp())
  operator(pg_catalog.*) 1000)::double precision as due_in_ms`;

/** What the log and the traces of a claimed row need, and empty content in place of its own. */
const COLUMNS_WITHOUT_BODY = `c.claim_token, c.seq::pg_catalog.text, c.attempt, c.consumer, c.message_id, c.type, c.key,
  c.schema_version, null as body, c.content_type, c.content_encoding, '{}'::pg_catalog.jsonb as headers, c.correlation_id,
  c.causation_id, c.reply_to, c.app_id, c.occurred_at, c.traceparent, c.tracestate, c.exchange, c.routing_key`;

/** Blocked keys that one call looks at; measured: 100,000 take about 2 s. */
const SWEPT_KEYS = 2_000;
/** Calls of one sweep; where there are more keys, the next one goes on. The first one looks at all. */
const SWEEP_CALLS = 10;

export interface InboxStoreOptions {
  schema: string;
  consumer: string;
  /** Monotonic milliseconds. */
  now: () => number;
  /** Told how long each transaction took in which an sql handler was called. */
  onHandled: (seconds: number) => void;
  /** Whether whoever claims needs bodies and headers; an sql handler finds them in the table. */
  claimsBodies: boolean;
}

/**
 * The inbox of one consumer, by the functions of the schema. One statement is one transaction. Every name in
 * them is exact, because they may run under the search path of the role, which is the handler's: see connectSql.
 */
export class InboxStore {
  readonly #lending: Lending;
  readonly #schema: string;
  readonly #consumer: string;
  readonly #now: () => number;
  readonly #onHandled: (seconds: number) => void;
  readonly #claimedColumns: string;
  /** The last key that a sweep has looked at; null: it starts anew. */
  #sweptTo: string | null = null;
  #sweptAll = false;

  constructor(lending: Lending, options: InboxStoreOptions) {
    this.#lending = lending;
    this.#schema = quoteSchema(options.schema);
    this.#consumer = options.consumer;
    this.#now = options.now;
    this.#onHandled = options.onHandled;
    this.#claimedColumns = options.claimsBodies ? 'c.*, c.seq::pg_catalog.text' : COLUMNS_WITHOUT_BODY;
  }

  async ping(): Promise<void> {
    await this.#query('asking whether the database answers', 'select 1', []);
  }

  async receive(arrivals: readonly Arrival[], apply: boolean): Promise<ReceivedRow[]> {
    const messages = JSON.stringify(arrivals.map(toJson));
    const bodies = Buffer.concat(arrivals.map(({ row }) => row.body));
    const rows = await this.#query<OutcomeRow & { outcome: ReceivedRow['outcome'] }>(
      'writing messages into the inbox',
      `select r.outcome, r.seq::pg_catalog.text, r.status, r.verdict, r.attempt, r.dead_reason, r.error, null as released,
         ${DUE_IN_MS}
       from ${this.#schema}.inbox_receive($1, $2::pg_catalog.json, $3::pg_catalog.bytea, $4) r order by r.ordinal`,
      [this.#consumer, messages, bodies, apply],
      { name: 'inbox-receive', ...(apply ? { handles: (row) => row.verdict !== null } : {}) },
    );
    return rows.map((row) => ({ ...toOutcome(row), outcome: row.outcome }));
  }

  async claim(max: number, leaseMs: number) {
    return this.#claimed('claiming messages', `${this.#schema}.inbox_claim($1, $2, $3::interval)`, [
      this.#consumer,
      max,
      `${leaseMs} ms`,
    ]);
  }

  async claimRows(rows: readonly { seq: bigint; attempt: number | null }[], leaseMs: number) {
    const attempts = rows.map(({ attempt }) => attempt);
    return this.#claimed(
      'claiming messages',
      `${this.#schema}.inbox_claim_rows($1, $2::bigint[], $3::int[], $4::interval)`,
      [this.#consumer, rows.map(({ seq }) => String(seq)), attempts.includes(null) ? null : attempts, `${leaseMs} ms`],
    );
  }

  async apply(seqs: readonly bigint[], token: string): Promise<Outcome[]> {
    const rows = await this.#query<OutcomeRow>(
      'applying messages',
      `select r.seq::pg_catalog.text, r.status, r.verdict, r.attempt, r.dead_reason, r.error, r.released, ${DUE_IN_MS}
       from ${this.#schema}.inbox_apply($1, $2::bigint[], $3::pg_catalog.uuid) r order by r.seq`,
      [this.#consumer, seqs.map(String), token],
      { handles: (row) => row.verdict !== 'lost' },
    );
    return rows.map(toOutcome);
  }

  async settle(token: string, results: readonly { seq: bigint; verdict: Settlement }[]): Promise<Outcome[]> {
    const errors = new Map(
      results.map(({ seq, verdict }) => [String(seq), verdict.kind === 'done' ? null : verdict.error]),
    );
    const rows = await this.#query<Omit<OutcomeRow, 'error'>>(
      'settling messages',
      `select r.seq::pg_catalog.text, r.status, r.verdict, r.attempt, r.dead_reason, r.released, ${DUE_IN_MS}
       from ${this.#schema}.inbox_settle($1, $2::pg_catalog.uuid, $3::pg_catalog.json) r`,
      [this.#consumer, token, JSON.stringify(results.map(toResult))],
    );
    return rows.map((row) => toOutcome({ ...row, error: errors.get(row.seq) ?? null }));
  }

  async extend(seqs: readonly bigint[], token: string, leaseMs: number): Promise<void> {
    await this.#query(
      'prolonging leases',
      `select ${this.#schema}.inbox_extend_rows($1, $2::bigint[], $3::pg_catalog.uuid, $4::interval)`,
      [this.#consumer, seqs.map(String), token, `${leaseMs} ms`],
    );
  }

  async giveBack(owed: readonly { seq: bigint; attempts: number }[], call: number): Promise<number> {
    const rows = await this.#query<{ n: number }>(
      'giving attempts back',
      `select ${this.#schema}.inbox_give_back($1, $2::bigint[], $3::int[], $4::bigint) as n`,
      [this.#consumer, owed.map(({ seq }) => String(seq)), owed.map(({ attempts }) => attempts), call],
    );
    return rows[0]?.n ?? 0;
  }

  async due(max: number): Promise<{ seq: bigint; attempt: number; alone: boolean }[]> {
    const rows = await this.#query<{ seq: string; attempt: number; alone: boolean }>(
      'looking for due messages',
      `select r.seq::pg_catalog.text, r.attempt, r.alone from ${this.#schema}.inbox_due($1, interval '0', $2) r`,
      [this.#consumer, max],
    );
    return rows.map((row) => ({ ...row, seq: BigInt(row.seq) }));
  }

  async sweepKeys(): Promise<number> {
    let released = 0;
    for (let call = 1; !this.#sweptAll || call <= SWEEP_CALLS; call += 1) {
      const rows: { released: number; next_key: string | null }[] = await this.#query(
        'looking for orphans',
        `select released, next_key from ${this.#schema}.inbox_sweep($1, $2, $3)`,
        [this.#consumer, this.#sweptTo, SWEPT_KEYS],
      );
      released += rows[0]?.released ?? 0;
      this.#sweptTo = rows[0]?.next_key ?? null;
      if (this.#sweptTo === null) {
        this.#sweptAll = true;
        break;
      }
    }
    return released;
  }

  async claimDeaths({ rows: most, bytes, leaseMs }: { rows: number; bytes: number; leaseMs: number }) {
    const rows = await this.#query<MessageRow & DeathRow>(
      'claiming dead messages for their copies',
      `select d.seq::pg_catalog.text, d.died_at::pg_catalog.text, d.refused,
         i.failures operator(pg_catalog.+) i.abandoned as attempt, i.consumer, i.message_id,
         i.original_id, i.type, i.key, i.schema_version, i.body, i.content_type, i.content_encoding, i.headers, i.exchange,
         i.routing_key, i.correlation_id, i.causation_id, i.reply_to, i.app_id, i.occurred_at, i.traceparent, i.tracestate,
         i.dead_reason, i.last_error, i.failures
       from ${this.#schema}.inbox_deaths_claim($1, $2, $3, $4::interval) d
         join ${this.#schema}.inbox i on i.seq operator(pg_catalog.=) d.seq
       where i.body is not null order by d.died_at, d.seq`,
      [this.#consumer, most, bytes, `${leaseMs} ms`],
    );
    return rows.map((row) => ({
      message: toMessage(row),
      exchange: row.exchange ?? '',
      routingKey: row.routing_key ?? '',
      originalId: row.original_id,
      deadReason: row.dead_reason ?? 'unknown',
      error: row.last_error,
      failures: row.failures,
      diedAt: row.died_at,
      refused: row.refused,
    }));
  }

  async deathsCopied(deaths: readonly ClaimedDeath[]): Promise<void> {
    await this.#query(
      'noting copied deaths',
      `select ${this.#schema}.inbox_deaths_done($1, $2::bigint[], $3::pg_catalog.timestamptz[])`,
      [this.#consumer, ...whichDeaths(deaths)],
    );
  }

  async keepDeaths(deaths: readonly ClaimedDeath[], delayMs: number | null, wasRefused: boolean): Promise<void> {
    await this.#query(
      'giving deaths back that are not copied',
      `select ${this.#schema}.inbox_deaths_keep($1, $2::bigint[], $3::pg_catalog.timestamptz[], $4::interval, $5)`,
      [this.#consumer, ...whichDeaths(deaths), delayMs === null ? null : `${delayMs} ms`, wasRefused],
    );
  }

  async wake(): Promise<void> {
    await this.#query('waking workers', `select ${this.#schema}.inbox_wake($1)`, [this.#consumer]);
  }

  async break(reason: string): Promise<void> {
    await this.#query('noting that the handler is broken', `select ${this.#schema}.consumer_break($1, $2)`, [
      this.#consumer,
      reason,
    ]);
  }

  async mend(): Promise<void> {
    await this.#query('noting that the handler is not broken', `select ${this.#schema}.consumer_mend($1)`, [
      this.#consumer,
    ]);
  }

  async #claimed(doing: string, call: string, values: unknown[]) {
    const rows = await this.#query<MessageRow & { claim_token: string }>(
      doing,
      `select ${this.#claimedColumns} from ${call} c`,
      values,
    );
    const token = rows[0]?.claim_token;
    return token === undefined ? undefined : { token, messages: rows.map(toMessage) };
  }

  /** `handles`: whether a row says that a handler was called. A statement that took too long counts as well. */
  async #query<Row extends pg.QueryResultRow>(
    doing: string,
    text: string,
    values: unknown[],
    { name, handles }: { name?: string; handles?: (row: Row) => boolean } = {},
  ): Promise<Row[]> {
    return this.#lending.use(doing, async (client) => {
      const beganMs = this.#now();
      const took = (): void => this.#onHandled((this.#now() - beganMs) / 1_000);
      try {
        const { rows } = await client.query<Row>({ text, values, ...(name === undefined ? {} : { name }) });
        if (handles && rows.some(handles)) took();
        return rows;
      } catch (error) {
        if (handles && sqlState(error) === STATEMENT_CANCELLED) took();
        throw error;
      }
    });
  }
}

function toOutcome(row: OutcomeRow): Outcome {
  return {
    seq: BigInt(row.seq),
    status: row.status,
    verdict: row.verdict,
    attempt: row.attempt,
    dueInMs: row.due_in_ms,
    deadReason: row.dead_reason,
    error: row.error,
    hasReleased: row.released !== null,
  };
}

/** One element of what inbox_receive takes; what is undefined is left out. */
function toJson({ row, failed, hold }: Arrival): unknown {
  return {
    message_id: row.messageId,
    size: row.body.length,
    original_id: row.originalId ?? undefined,
    type: row.type ?? undefined,
    key: row.key ?? undefined,
    schema_version: row.schemaVersion ?? undefined,
    content_type: row.contentType ?? undefined,
    content_encoding: row.contentEncoding ?? undefined,
    headers: JSON.parse(row.headers) as unknown,
    exchange: row.exchange,
    routing_key: row.routingKey,
    correlation_id: row.correlationId ?? undefined,
    causation_id: row.causationId ?? undefined,
    reply_to: row.replyTo ?? undefined,
    app_id: row.appId ?? undefined,
    priority: row.priority ?? undefined,
    occurred_at: row.occurredAt ?? undefined,
    traceparent: row.traceparent ?? undefined,
    tracestate: row.tracestate ?? undefined,
    dead_reason: row.dead?.reason,
    error: row.dead?.text,
    raw_properties: row.rawProperties === null ? undefined : Buffer.from(row.rawProperties).toString('base64'),
    failed,
    hold,
  };
}

function toResult({ seq, verdict }: { seq: bigint; verdict: Settlement }): unknown {
  const retryInMs = 'retryInMs' in verdict ? verdict.retryInMs : undefined;
  return {
    seq: String(seq),
    verdict: verdict.kind,
    error: verdict.kind === 'done' ? undefined : verdict.error,
    result: verdict.kind === 'done' ? verdict.result : undefined,
    retry_in: retryInMs === undefined ? undefined : `${Math.round(retryInMs)} ms`,
  };
}

interface MessageRow {
  seq: string;
  attempt: number;
  consumer: string;
  message_id: string;
  original_id: string | null;
  type: string | null;
  key: string | null;
  schema_version: number | null;
  body: Buffer | null;
  content_type: string | null;
  content_encoding: string | null;
  headers: Record<string, unknown>;
  exchange: string | null;
  routing_key: string | null;
  correlation_id: string | null;
  causation_id: string | null;
  reply_to: string | null;
  app_id: string | null;
  occurred_at: Date | null;
  traceparent: string | null;
  tracestate: string | null;
}

interface DeathRow {
  dead_reason: string | null;
  last_error: string | null;
  failures: number;
  died_at: string;
  refused: number;
}

interface ClaimedDeath {
  message: { seq: bigint };
  diedAt: string;
}

function whichDeaths(deaths: readonly ClaimedDeath[]): [string[], string[]] {
  return [deaths.map(({ message }) => String(message.seq)), deaths.map(({ diedAt }) => diedAt)];
}

function toMessage(row: MessageRow) {
  return {
    seq: BigInt(row.seq),
    consumer: row.consumer,
    messageId: row.message_id,
    type: row.type,
    key: row.key,
    schemaVersion: row.schema_version,
    body: row.body ?? Buffer.alloc(0),
    contentType: row.content_type,
    contentEncoding: row.content_encoding,
    headers: row.headers,
    correlationId: row.correlation_id,
    causationId: row.causation_id,
    replyTo: row.reply_to,
    appId: row.app_id,
    occurredAt: row.occurred_at,
    traceparent: row.traceparent,
    tracestate: row.tracestate,
    exchange: row.exchange,
    routingKey: row.routing_key,
    attempt: row.attempt,
  };
}

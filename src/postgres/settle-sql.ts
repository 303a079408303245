import type { OutboxRow } from '../core/message.js';
import { OUTBOX_COLUMNS } from './outbox-row.js';

export type HistoryMode = 'trace' | 'full' | 'off';

/** What a commit waits for: nothing, the disk here, or what the server was told to wait for (a standby, too). */
export type Durability = 'off' | 'local' | 'on';

/**
 * True, and from there on the commit of the same statement waits. Why not `begin; set local`: a process that is stopped
 * between two statements would leave the relay's row locked.
 */
export function awaiting(durability: Durability): string {
  return durability === 'off' ? 'true' : `set_config('synchronous_commit', '${durability}', true) is not null`;
}

/** Holds the relay's row under its epoch for the length of the statement; empty when the epoch is another's (O6). */
const fence = (schema: string, durability: Durability): string => `fence as materialized (
    select 1 from ${schema}.relay where name = $1 and epoch = $2::bigint and ${awaiting(durability)} for update)`;

/**
 * Finds rows by primary key, whatever the size of the table, and locks them; rows that somebody else has locked are left
 * out. `$3` are the seqs. By ctid afterwards, and the session has no sequential scans: see forRelay. Why `only`, here and
 * wherever rows are read: in a child table another row may lie in the same place.
 */
const found = (schema: string): string => `found as materialized (
    select o.ctid as place, o.seq, o.id, o.state from only ${schema}.outbox o
    where o.seq = any($3::bigint[]) and exists (select from fence)
    for update of o skip locked)`;

/** Of a statement with `found` and `input`: the row of this one is locked by us, so nobody else keeps it from us. */
const isFound = (row: string): string =>
  `select from found f join input i on i.seq = f.seq and i.id = f.id where f.seq = ${row}.seq`;

const HISTORY_TRACE = `outcome, id, seq, type, key, schema_version, exchange, routing_key, attempts, created_at,
  occurred_at, published_at, size, sha256`;
const HISTORY_FULL = `${HISTORY_TRACE}, payload, payload_bytes, content_type, content_encoding, headers, correlation_id,
  causation_id, reply_to, traceparent, tracestate, priority, expires_at, deliver_at`;

/**
 * Deletes settled rows, writes their history and moves the checkpoint, in one statement. See RelayStore.settle. `missing`
 * were not found, or are locked; `kept` were found and are there all the same.
 */
export function settleSql(schema: string, history: HistoryMode, durability: Durability): string {
  const body = `coalesce(convert_to(g.payload::text, 'UTF8'), g.payload_bytes, '')`;
  const full = `, g.payload, g.payload_bytes, g.content_type, g.content_encoding, g.headers, g.correlation_id,
      g.causation_id, g.reply_to, g.traceparent, g.tracestate, g.priority, g.expires_at, g.deliver_at`;
  const record =
    history === 'off'
      ? ''
      : `, record as (
    insert into ${schema}.outbox_history (${history === 'full' ? HISTORY_FULL : HISTORY_TRACE})
    select i.outcome, g.id, g.seq, g.type, g.key, g.schema_version, i.exchange, i.routing_key, g.attempts,
      g.created_at, g.occurred_at, case when i.outcome = 'expired' then null else clock_timestamp() end,
      octet_length(${body}), sha256(${body})${history === 'full' ? full : ''}
    from gone g join input i using (seq))`;
  return `with ${fence(schema, durability)}, input as materialized (
    select * from unnest($3::bigint[], $4::uuid[], $5::pg_lsn[], $6::text[], $7::text[], $8::text[])
      as i (seq, id, floor, exchange, routing_key, outcome)),
  ${found(schema)}, gone as (
    delete from only ${schema}.outbox o
    where o.ctid = any(array(select f.place from found f join input i on i.seq = f.seq and i.id = f.id))
    returning o.*)${record}, missing as materialized (
    select i.seq, i.floor from input i where not exists (select from gone g where g.seq = i.seq)),
  mark as (
    update ${schema}.relay
    set checkpoint_lsn = greatest(checkpoint_lsn, least($9::pg_lsn, (select min(floor) from missing))),
      checkpoint_at = clock_timestamp()
    where name = $1 and epoch = $2::bigint and exists (select from fence)
    returning checkpoint_lsn)
  select exists (select from mark) as fenced, (select checkpoint_lsn::text from mark) as checkpoint,
    (select array_agg(m.seq::text) from missing m where not exists (${isFound('m')})) as missing,
    (select array_agg(m.seq::text) from missing m where exists (${isFound('m')})) as kept`;
}

/**
 * Gives rows their held state. A row that is no longer `ready` keeps what somebody else made of it. Rows of one `lane`
 * are held up to the first that is not found; those behind it count as missing too. `kept`: found, and not held all the
 * same.
 */
export function holdSql(schema: string): string {
  return `with ${fence(schema, 'on')}, input as materialized (
    select * from unnest($3::bigint[], $4::uuid[], $5::text[], $6::int[], $7::text[], $8::double precision[],
      $9::bigint[], $10::text[]) with ordinality as i (seq, id, state, attempts, error, delay_ms, hold_no, lane, n)),
  ${found(schema)}, gap as materialized (
    select i.lane, min(i.n) as n from input i
    where i.lane is not null and not exists (select from found f where f.seq = i.seq and f.id = i.id)
    group by i.lane), held as (
    update only ${schema}.outbox o
    set state = i.state, attempts = i.attempts, last_error = i.error,
      next_attempt_at = case when i.state <> 'scheduled' then null
        else coalesce(clock_timestamp() + i.delay_ms * interval '1 millisecond', o.deliver_at, clock_timestamp()) end,
      hold_no = coalesce(i.hold_no, ${nextHoldNo(schema, 'i.state')})
    from input i left join gap on gap.lane = i.lane
    where o.ctid = any(array(select place from found)) and i.seq = o.seq and i.id = o.id and o.state = 'ready'
      and (gap.n is null or i.n < gap.n)
    returning o.seq)
  select exists (select from fence) as fenced,
    array_agg(l.seq::text) filter (where not l.kept) as missing, array_agg(l.seq::text) filter (where l.kept) as kept
  from (
    select i.seq, f.seq is not null and (gap.n is null or i.n < gap.n) as kept
    from input i left join found f on f.seq = i.seq and f.id = i.id left join gap on gap.lane = i.lane
    where not exists (select from held h where h.seq = i.seq) and coalesce(f.state, 'ready') = 'ready') l`;
}

/** Gives held rows new places in their keys. A row that has none any more needs none: somebody has withdrawn it. */
export function placeSql(schema: string): string {
  return `with ${fence(schema, 'on')}, input as materialized (
    select * from unnest($3::bigint[], $4::uuid[], $5::bigint[]) as i (seq, id, hold_no)),
  ${found(schema)}, placed as (
    update only ${schema}.outbox o set hold_no = i.hold_no from input i
    where o.ctid = any(array(select place from found)) and i.seq = o.seq and i.id = o.id and o.hold_no is not null)
  select exists (select from fence) as fenced,
    (select array_agg(i.seq::text) from input i
     where not exists (select from found f where f.seq = i.seq and f.id = i.id)) as missing`;
}

/** The number of a row that is held without one. */
function nextHoldNo(schema: string, state: string): string {
  return `case when ${state} in ('parked', 'blocked') then nextval('${schema.replaceAll("'", "''")}.outbox_hold_no') end`;
}

/** Which rows a statement takes: as they come, without those of a list of seqs, or only these. */
export type Choice = 'any' | 'without' | 'only';

/** Why not one condition for all: the common case is to be as quick as without any. */
function chosen(choice: Choice, list: string): string {
  if (choice === 'any') return '';
  return choice === 'only' ? `and seq = any(${list}::bigint[])` : `and seq not in (select unnest(${list}::bigint[]))`;
}

/** Rows whose time has come. */
const IS_DUE = `state = 'scheduled' and next_attempt_at <= statement_timestamp()`;

/**
 * Due rows become ready under the fence. `$3` is the most rows at once, `$5` the list of the choice. With `$4`
 * (strict order) those that have a place keep it and become `blocked`: the head of a key goes first, and what comes
 * before them may not be in the table yet. A row that is ready keeps its next_attempt_at, by which it is known: after a
 * crash, when it may have gone out, it does not become `scheduled` again, where a cancel would find it. Why
 * statement_timestamp: an index can be searched for it, which for clock_timestamp it cannot. `kept`: it was to be
 * changed and is as it was.
 */
export function makeDueSql(schema: string, choice: Choice): string {
  const waits = '$4 and o.hold_no is not null and o.key is not null';
  return `with ${fence(schema, 'on')}, due as materialized (
    select ctid as place, seq, id, key, type from only ${schema}.outbox
    where ${IS_DUE} and exists (select from fence) ${chosen(choice, '$5')}
    order by next_attempt_at limit $3 for update skip locked),
  gone as (
    update only ${schema}.outbox o set hold_no = case when $4 then o.hold_no end,
      state = case when ${waits} then 'blocked' else 'ready' end,
      next_attempt_at = case when not (${waits}) then o.next_attempt_at end
    where o.ctid = any(array(select place from due))
    returning o.seq, ${BODY_BYTES} as bytes, case when o.state = 'blocked' then o.hold_no::text end as place)
  select d.seq::text as seq, d.id::text as id, d.key, d.type, g.bytes, g.place as order, g.seq is null as kept
  from due d left join gone g on g.seq = d.seq`;
}

/** The rows that are due, at most `$1`, without `$2`; `what` of them. */
export function dueRowsSql(schema: string, what = 'seq::text as seq, id::text as id, key, type'): string {
  return `select ${what} from only ${schema}.outbox
    where ${IS_DUE} and seq not in (select unnest($2::bigint[])) order by next_attempt_at limit $1`;
}

/** Octets of the body of row `o`. */
const BODY_BYTES = 'coalesce(octet_length(o.payload::text), octet_length(o.payload_bytes), 0)';

/**
 * Lets held rows of keys go (strict order). `$3` are the keys, `$4` for each the number up to which its rows are on their
 * way out already, `$5` the most rows of a key, `$6` the number up to which rows are looked at (null: all), `$7` rows
 * that are left alone. From the head of a key, in order, up to the first row that waits for a time or a person, or that
 * somebody has locked or is left alone (`locked`). A key whose lock an operator's act holds is left out of the answer.
 * `kept`: it was to go and is as it was.
 */
export function releaseSql(schema: string): string {
  return `with ${fence(schema, 'on')}, asked as materialized (
    select k.key, k.after from unnest($3::text[], $4::bigint[]) as k (key, after)
    where exists (select from fence) and pg_try_advisory_xact_lock(${schema}.outbox_key_lock(k.key))),
  head as materialized (
    select a.key, o.seq, o.id, o.type, o.hold_no, o.state from asked a cross join lateral (
      select seq, id, type, hold_no, state from only ${schema}.outbox
      where key = a.key and hold_no > a.after and hold_no <= coalesce($6::bigint, 9223372036854775807)
      order by key, hold_no limit $5 + 1) o),
  mine as materialized (
    select o.seq from only ${schema}.outbox o
    where o.seq = any(array(select seq from head where state in ('ready', 'blocked')))
      and o.state in ('ready', 'blocked') and o.seq <> all($7::bigint[]) for update of o skip locked),
  run as materialized (
    select h.key, h.seq, h.id, h.type, h.hold_no, row_number() over ahead as place, bool_and(m.seq is not null) over ahead as free,
      bool_and(m.seq is not null or h.state in ('ready', 'blocked')) over ahead and m.seq is null as locked
    from head h left join mine m using (seq) window ahead as (partition by h.key order by h.hold_no)),
  released as (
    update only ${schema}.outbox o set state = 'ready', next_attempt_at = null
    from run r where o.seq = r.seq and r.free and r.place <= $5
    returning o.seq, ${BODY_BYTES} as bytes)
  select exists (select from fence) as fenced, a.key, r.seq::text as seq, r.id::text as id, r.type, g.bytes,
    r.seq is not null and g.seq is null as kept,
    exists (select from run x where x.key = a.key and not (x.free and x.place <= $5)) as remains,
    exists (select from run x where x.key = a.key and x.locked) as locked
  from (select) as once left join asked a on true
  left join run r on r.key = a.key and r.free and r.place <= $5 left join released g on g.seq = r.seq
  order by a.key, r.hold_no`;
}

/** The row of key `$1` that a release would let go first: behind number `$2`, up to `$3` (null: any). */
export function headOfSql(schema: string): string {
  return `select seq::text as seq, id::text as id, key, type from only ${schema}.outbox
    where key = $1 and hold_no > $2::bigint and hold_no <= coalesce($3::bigint, 9223372036854775807)
    order by key, hold_no limit 1`;
}

/** Rows in states `$1` that have a place, at most `$2` (null: all), without `$3`. */
export function placedRowsSql(schema: string): string {
  return `select seq::text as seq, id::text as id, key, type from only ${schema}.outbox
    where hold_no is not null and state = any($1) and seq not in (select unnest($3::bigint[]))
    order by hold_no limit $2::bigint`;
}

/**
 * At the start of a session with strict order nothing is in flight: rows that an earlier one had let go wait again in
 * their places, where a discard of the row before them finds them. Those that somebody has locked stay as they are.
 * `$3`: only these; null: all.
 */
export function reblockSql(schema: string): string {
  return `with ${fence(schema, 'on')}, back as (
    update only ${schema}.outbox set state = 'blocked'
    where ctid = any(array(
      select ctid from only ${schema}.outbox
      where state = 'ready' and hold_no is not null and key is not null and exists (select from fence)
        and ($3::bigint[] is null or seq = any($3::bigint[]))
      for update skip locked)))
  select exists (select from fence) as fenced`;
}

/** The highest number in use of rows that hold their keys. */
export function lastHoldNoSql(schema: string): string {
  return `select greatest((select last_value from ${schema}.outbox_hold_no),
    (select max(hold_no) from only ${schema}.outbox), 0)::text as last`;
}

/** Keys with rows that hold them, `$2` at most, in their order after `$1` (null: from the first). */
export function heldKeysSql(schema: string): string {
  return `select distinct key from only ${schema}.outbox
    where hold_no is not null and ($1::text is null or key > $1) and key is not null order by key limit $2`;
}

/**
 * Without strict order nothing holds a key: rows that an earlier setting left behind go on, in their order. Those that
 * somebody has locked stay, for another time. `$3` is the most rows at once, `$4` the list of the
 * choice.
 */
export function unblockSql(schema: string, choice: Choice): string {
  return `with ${fence(schema, 'on')}, free as materialized (
    select seq, id, key, type, hold_no from only ${schema}.outbox
    where hold_no is not null and state in ('blocked', 'ready') and exists (select from fence)
      ${chosen(choice, '$4')}
    order by hold_no limit $3 for update skip locked),
  chosen as (
    select seq, row_number() over (order by hold_no) as n from free),
  changed as (
    update only ${schema}.outbox o
    set state = 'scheduled', hold_no = null, next_attempt_at = statement_timestamp() + s.n * interval '1 microsecond'
    from chosen s where o.seq = s.seq and o.state in ('blocked', 'ready') returning o.seq)
  select exists (select from fence) as fenced, (select count(*) from changed)::int as rows,
    (select json_agg(json_build_object('seq', f.seq::text, 'id', f.id, 'key', f.key, 'type', f.type)) from free f
     where not exists (select from changed c where c.seq = f.seq)) as kept`;
}

/**
 * Transactions of others that have locked rows of the outbox; `$1` are their seqs. `exact`: one of these rows names it.
 * Why the others: a row that several have locked names none of them. Sessions of a relay lock for moments alone.
 */
export function lockHoldersSql(schema: string): string {
  return `with named as materialized (
    select distinct xmax::text as xid from only ${schema}.outbox where seq = any($1::bigint[])),
  held as (
    select l.pid, max(l.transactionid::text) as xid, bool_or(l.locktype = 'transactionid') as exact
    from pg_locks l
    where l.granted and l.pid is distinct from pg_backend_pid() and (
      l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.transactionid::text in (select xid from named)
      or l.locktype = 'relation' and l.mode = 'RowShareLock' and l.relation = to_regclass('${schema.replaceAll("'", "''")}.outbox')
        and l.database = (select oid from pg_database where datname = current_database()))
    group by l.pid, l.virtualtransaction)
  select h.exact, h.pid, coalesce(a.usename, x.owner)::text as "user", nullif(a.application_name, '') as application,
    x.gid as prepared
  from held h left join pg_stat_activity a on a.pid = h.pid
  left join pg_prepared_xacts x on h.pid is null and x.transaction::text = h.xid
  where h.exact or coalesce(a.application_name, '') not like 'waybill %'
  order by h.exact desc, h.pid limit 20`;
}

/** History of published rows that are not in the table any more. */
export function recordGoneSql(schema: string): string {
  return `with ${fence(schema, 'off')}, record as (
    insert into ${schema}.outbox_history (${HISTORY_TRACE})
    select outcome, id, seq, type, key, schema_version, exchange, routing_key, attempts, created_at, occurred_at,
      clock_timestamp(), null, null
    from unnest($3::text[], $4::uuid[], $5::bigint[], $6::text[], $7::text[], $8::int[], $9::text[], $10::text[],
      $11::int[], $12::timestamptz[], $13::timestamptz[])
      as i (outcome, id, seq, type, key, schema_version, exchange, routing_key, attempts, created_at, occurred_at)
    where exists (select from fence))
  select exists (select from fence) as fenced`;
}

/** In the order of writeBackValues. The seq is drawn anew. */
const WRITE_BACK_COLUMNS: readonly string[] = [
  ...OUTBOX_COLUMNS.filter((name) => name !== 'seq' && name !== 'attempts'),
  'state',
  'attempts',
  'last_error',
];

/**
 * Writes a held row back whose application deleted it in its own transaction. It gets a new seq, because the old one may
 * be in use again; an id that is there already (`present`) needs nothing.
 */
export function writeBackSql(schema: string): string {
  const parameters = WRITE_BACK_COLUMNS.map((name, n) => `$${n + 3}::${writeBackType(name)}`);
  const delay = `$${WRITE_BACK_COLUMNS.length + 3}::double precision`;
  const holdNo = `$${WRITE_BACK_COLUMNS.length + 4}::bigint`;
  const state = parameters[WRITE_BACK_COLUMNS.indexOf('state')] ?? '';
  const deliverAt = parameters[WRITE_BACK_COLUMNS.indexOf('deliver_at')] ?? '';
  return `with ${fence(schema, 'on')}, written as (
    insert into ${schema}.outbox (${WRITE_BACK_COLUMNS.join(', ')}, next_attempt_at, hold_no)
    select ${parameters.join(', ')},
      case when ${state} = 'scheduled'
        then coalesce(clock_timestamp() + ${delay} * interval '1 millisecond', ${deliverAt}, clock_timestamp()) end,
      coalesce(${holdNo}, ${nextHoldNo(schema, state)})
    where exists (select from fence)
    on conflict (id) do nothing
    returning 1)
  select exists (select from fence) as fenced, exists (select from written) as written,
    exists (select from only ${schema}.outbox where id = $3::uuid) as present`;
}

function writeBackType(column: string): string {
  switch (column) {
    case 'id':
      return 'uuid';
    case 'schema_version':
    case 'attempts':
      return 'int';
    case 'priority':
      return 'smallint';
    case 'payload':
      return 'json';
    case 'payload_bytes':
      return 'bytea';
    case 'headers':
      return 'jsonb';
    case 'expires_at':
    case 'deliver_at':
    case 'occurred_at':
    case 'created_at':
      return 'timestamptz';
    default:
      return 'text';
  }
}

/** The parameters of writeBackSql after relay and epoch. */
export function writeBackValues(hold: {
  row: OutboxRow;
  state: string;
  attempts: number;
  error: string | null;
  delayMs: number | null;
  holdNo: bigint | null;
}): unknown[] {
  const { row } = hold;
  return [
    row.id,
    row.type,
    row.key,
    row.schemaVersion,
    row.bodyKind === 'json' ? row.body.toString('utf8') : null,
    row.bodyKind === 'bytes' ? row.body : null,
    row.contentType,
    row.contentEncoding,
    row.headers,
    row.exchange,
    row.routingKey,
    row.correlationId,
    row.causationId,
    row.replyTo,
    row.traceparent,
    row.tracestate,
    row.priority,
    row.expiresAt,
    row.deliverAt,
    row.occurredAt,
    row.createdAt,
    hold.state,
    hold.attempts,
    hold.error,
    hold.delayMs,
    hold.holdNo === null ? null : String(hold.holdNo),
  ];
}

/**
 * The functions in which a statement failed, innermost first, such as those of a trigger on our tables. Why not all that
 * the server says of the place: it quotes statements, and with them values. Ours stand there without a schema: it is on
 * their own path.
 */
export function foreignFunctions(error: unknown): string[] {
  const where: unknown = typeof error === 'object' && error !== null && 'where' in error ? error.where : undefined;
  if (typeof where !== 'string') return [];
  return [...where.matchAll(/^(?:PL\/\w+|SQL) function ([^\s(]+\.[^\s(]+\([^)]*\))/gm)].flatMap(
    ([, name]) => name ?? [],
  );
}

/** Most that are named. */
const MOST = 3;

export type TriggerEvent = 'insert' | 'delete' | 'update';

/** Bits of tgtype. */
const EVENT_BITS: Readonly<Record<TriggerEvent, number>> = { insert: 4, delete: 8, update: 16 };

const NAMES = `string_agg(distinct t.name, ', ') as names`;
const OWN = `t.tgenabled <> 'D' and not t.tgisinternal`;

/** Triggers on our tables that call one of the functions `$1`. */
export function triggersOfSql(schema: string): string {
  return `select ${NAMES} from (
    select t.tgname || ' on ' || t.tgrelid::regclass as name from pg_trigger t
    join pg_class c on c.oid = t.tgrelid
    where ${OWN} and t.tgparentid = 0 and c.relnamespace = ${literal(schema)}::regnamespace
      and t.tgfoid::oid in (select to_regprocedure(f)::oid from unnest($1::text[]) f)
    order by 1 limit ${MOST}) t`;
}

/** Triggers on the outbox that may have a row stay as it is without a word. */
export function silencersSql(schema: string, event: TriggerEvent): string {
  // Of the bits of tgtype: 1 for each row, 2 before.
  return `select ${NAMES} from (
    select t.tgname || ' on ' || t.tgrelid::regclass as name from pg_trigger t
    where ${OWN} and t.tgrelid = ${literal(`${schema}.outbox`)}::regclass and t.tgtype & 3 = 3
      and t.tgtype & ${EVENT_BITS[event]} <> 0
    order by 1 limit ${MOST}) t`;
}

function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

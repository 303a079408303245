import { quoteIdentifier } from '../core/identity.js';
import { pause, within, type Clock } from '../runtime/clock.js';
import type { Failure } from '../runtime/signal.js';
import { whileHandling } from './handling.js';
import type { Claim, ReceivedMessage } from './message.js';
import type { ClientPool, PooledClient } from './queryable.js';
import { isConflict, isLeaseLost, released, settlementOf, textOf, type Settlement } from './verdict.js';

/** What a handler is given beside its message and its transaction. */
export interface HandlingContext {
  /** Aborts when the lease is lost, time is over, or the worker stops and can wait no longer. */
  signal: AbortSignal;
}

/**
 * Has the effect of a message, by statements on `client`, which is in a transaction: it commits together with the word that
 * the message is done, or not at all. A text that is returned is kept as the result. Must neither commit nor roll back.
 */
export type Handle<C> = (message: ReceivedMessage, client: C, context: HandlingContext) => Promise<unknown>;

export interface AttemptOptions<C extends PooledClient> {
  pool: ClientPool<C>;
  schema: string;
  isolation: 'read committed' | 'repeatable read' | 'serializable';
  handle: Handle<C>;
  clock: Clock;
}

/** `lost`: the row is another's, or it was settled although we could not hear it. */
export type AttemptEnd =
  { kind: 'done' } | { kind: 'lost'; error: unknown } | { kind: 'failed'; error: unknown; settlement: Settlement };

/** How often one attempt begins again when transactions meet; such a meeting is no failure of the message. */
const MAX_ROUNDS = 5;
/** At most, times the round; by chance, so that the same two do not meet again. */
const CONFLICT_PAUSE_MS = 50;
const ROLLBACK_MS = 5_000;

/**
 * One attempt at a claimed message: begin, handle, complete, commit, on one connection. Never rejects. `signal` is passed to
 * the handler; `cut` ends the attempt at once, its connection with it, so that nothing of it can commit any more.
 */
export async function attempt<C extends PooledClient>(
  options: AttemptOptions<C>,
  claim: Claim,
  signal: AbortSignal,
  cut: Failure,
): Promise<AttemptEnd> {
  for (let round = 1; ; round += 1) {
    const end = await once(options, claim, signal, cut);
    const again = end.kind === 'failed' && isConflict(end.error) && round < MAX_ROUNDS && !signal.aborted;
    if (!again) return end;
    await pause(options.clock, CONFLICT_PAUSE_MS * round * options.clock.random(), signal);
  }
}

async function once<C extends PooledClient>(
  { pool, schema, isolation, handle, clock }: AttemptOptions<C>,
  claim: Claim,
  signal: AbortSignal,
  cut: Failure,
): Promise<AttemptEnd> {
  const connecting = pool.connect();
  let client: C;
  try {
    client = await cut.race(connecting);
  } catch (error) {
    connecting.then((late) => late.release()).catch(() => undefined);
    return { kind: 'failed', error, settlement: released(textOf(error)) };
  }
  client.on('error', ignore);
  let isUsable = true;
  try {
    const ours = quoteIdentifier(schema);
    const row = [String(claim.message.seq), claim.token];
    const query = (text: string, values?: unknown[]) => cut.race(client.query(text, values));
    await query(`begin isolation level ${isolation}`);
    // Ends with the transaction: the proof, at its end, that it is still the same one.
    await query(
      `select ${ours}.inbox_handling($1, $2::pg_catalog.uuid), pg_catalog.set_config('waybill_worker.token', $3, true)`,
      [...row, claim.token],
    );
    const result = await cut.race(whileHandling(claim.message, async () => handle(claim.message, client, { signal })));
    const { rows } = await query(
      `select ${ours}.inbox_complete($1, $2::pg_catalog.uuid, $3)
       where pg_catalog.current_setting('waybill_worker.token', true) operator(pg_catalog.=) $4`,
      [...row, typeof result === 'string' ? result : null, claim.token],
    );
    if (rows.length === 0) throw new Error('the handler ended the transaction that it was given');
    await query('commit');
    return { kind: 'done' };
  } catch (error) {
    isUsable = !cut.error && (await rolledBack(client, clock));
    if (isLeaseLost(error)) return { kind: 'lost', error };
    // Without its connection nothing is known of the message, maybe not even that it failed.
    return { kind: 'failed', error, settlement: isUsable ? settlementOf(error) : released(textOf(error)) };
  } finally {
    client.removeListener('error', ignore);
    // Why one stays: a connection that is closed may still tell of an error, and an unheard one ends the process.
    if (!isUsable) client.on('error', ignore);
    client.release(!isUsable);
  }
}

async function rolledBack(client: PooledClient, clock: Clock): Promise<boolean> {
  const answer = client.query('rollback').then(
    () => true,
    () => false,
  );
  return within(clock, answer, ROLLBACK_MS, false);
}

function ignore(): void {
  // The statement that waits on the connection tells of the same error.
}

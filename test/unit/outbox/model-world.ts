import { isWaybillError } from '../../../src/core/errors.js';
import type { Lsn } from '../../../src/core/lsn.js';
import { toMessage, type OutboxRow } from '../../../src/core/message.js';
import type { RelayCounters } from '../../../src/outbox/ports.js';
import { ManualClock, turn } from '../../support/manual-clock.js';
import { outboxRow } from '../../support/outbox-rows.js';
import { ModelBroker } from './model-broker.js';
import { ModelDatabase, type State } from './model-database.js';
import { MAX_BYTES, MAX_MESSAGES, ModelRelay, noCounts } from './model-relay.js';

/** What becomes of a row; `sometimes` names an exchange that comes and goes. */
export const FATES = [
  'ok',
  'unroutable',
  'nack',
  'poison',
  'bad_header',
  'no_exchange',
  'sometimes',
  'later',
  'expired',
] as const;
export type Fate = (typeof FATES)[number];

export interface RowPlan {
  fate: Fate;
  bytes: number;
  /** Deleted by its own transaction. */
  deleted: boolean;
  /** One of few; else every row has its own. */
  key?: number;
  /** As it is inserted; else ready. */
  state?: State;
}

export type Step =
  | { do: 'commit'; rows: RowPlan[]; gap: number; standby: boolean }
  | { do: 'write'; bytes: number }
  | { do: 'send' | 'process' | 'database' | 'broker' | 'run' | 'burst'; count: number }
  | { do: 'confirm'; which: number; multiple: boolean }
  | { do: 'pass time'; ms: number }
  | {
      do: 'kill channel' | 'lock' | 'refuse' | 'crash server' | 'cancel' | 'cancel slowly' | 'retry' | 'discard';
      which: number;
    }
  | { do: 'restart' | 'lose slot'; late: boolean }
  | { do: 'key lock' }
  | { do: 'keepalive' | 'due' | 'sweep' | 'unlock' | 'lock timeout' | 'standby answers' | 'exchange' | 'block' };

/** Everything around the relay, and the rules that must hold after each step. Rows are known by their ids. */
export class World {
  readonly clock = new ManualClock();
  readonly database = new ModelDatabase(this.clock, 1_000n);
  readonly broker = new ModelBroker();
  relay!: ModelRelay;
  readonly counters: RelayCounters;
  readonly #fates = new Map<
    string,
    { fate: Fate; state: State; transaction: number; place: number; key: string | null; slot: number }
  >();
  readonly #messages = new Map<string, string>();
  readonly #violations: string[] = [];
  /** The place of the newest first publish of a stream's row, in this session. */
  #lastFirst = -1;
  #publishedIds = new Set<string>();
  readonly #source: 'wal' | 'table';
  /** How many slots were lost. */
  #lostSlots = 0;
  /** Ids that only a slot had which was lost, or not made yet: their application had deleted them. */
  readonly #onlyInLog = new Set<string>();

  /** `from`: `checkpoint` is a relay that has worked before, `nothing` a first start. */
  constructor(
    counters: RelayCounters = noCounts(),
    ordering: 'pipelined' | 'strict' = 'pipelined',
    from: 'checkpoint' | 'nothing' | 'table' = 'checkpoint',
  ) {
    this.counters = counters;
    this.#source = from === 'table' ? 'table' : 'wal';
    if (from !== 'checkpoint') this.database.checkpointLsn = this.database.slotLsn = null;
    this.database.strict = ordering === 'strict';
    this.database.isConfirmed = (id) => this.broker.confirmed.has(id);
    this.database.isDelivered = (id) => this.broker.queue.some(({ messageId }) => messageId === id);
  }

  async startRelay(): Promise<void> {
    this.#lastFirst = -1;
    this.#publishedIds = new Set();
    const watch = {
      onPublish: (relay: ModelRelay, id: string) => this.#published(relay, id),
      onReport: (relay: ModelRelay, settled: Lsn) => this.#reported(relay, settled),
    };
    this.relay = new ModelRelay(this.database, this.broker, this.clock, this.counters, watch, this.#source);
    await this.relay.start();
  }

  async apply(step: Step): Promise<void> {
    const { database, broker, relay, clock } = this;
    const { channel } = relay.connection;
    const repeat = (count: number, work: () => void): void => Array.from({ length: count }).forEach(work);
    if (step.do === 'commit') this.#commit(step.rows, step.gap, step.standby);
    else if (step.do === 'write') database.insertLsn += BigInt(step.bytes);
    else if (step.do === 'send') repeat(step.count, () => relay.send());
    else if (step.do === 'burst') {
      // All in one piece of the socket, the keepalive last (fact 50).
      repeat(step.count * 3, () => relay.send());
      relay.keepalive();
    } else if (step.do === 'process') channel?.process(relay.connection.isBlocked ? 0 : step.count);
    else if (step.do === 'database') for (let n = 0; n < step.count; n += 1) await this.#answer(relay.databaseCalls);
    else if (step.do === 'broker') for (let n = 0; n < step.count; n += 1) await this.#answer(relay.brokerCalls);
    else if (step.do === 'run') for (let n = 0; n < step.count; n += 1) await this.#round(n);
    else if (step.do === 'confirm') channel?.confirm(step.which, step.multiple);
    else if (step.do === 'pass time') clock.advance(step.ms);
    else if (step.do === 'kill channel') {
      channel?.process(step.which);
      channel?.die();
    } else if (step.do === 'lock') {
      const { rows } = database;
      const each = rows[step.which % rows.length];
      if (each) database.locked.add(each.row.seq);
    } else if (step.do === 'refuse') database.refusesEvery = step.which % 4;
    else if (step.do === 'cancel' || step.do === 'cancel slowly')
      database.cancel(step.which, step.do === 'cancel slowly');
    else if (step.do === 'retry') database.retry(step.which);
    else if (step.do === 'discard') database.discard(step.which);
    else if (step.do === 'key lock') database.keysLockedNext = true;
    else if (step.do === 'crash server') {
      const was = database.slotLsn;
      await relay.lose(true);
      database.crash(step.which % 2 === 0 ? was : (database.checkpointLsn ?? was), step.which % 3 === 0);
      await this.startRelay();
    } else if (step.do === 'restart' || step.do === 'lose slot') {
      await relay.lose(step.late);
      if (step.do === 'lose slot') this.#loseSlot();
      await this.startRelay();
    } else if (step.do === 'keepalive') relay.keepalive();
    else if (step.do === 'due' || step.do === 'sweep') relay.feedFrom(step.do);
    else if (step.do === 'unlock') database.unlock();
    else if (step.do === 'lock timeout') database.lockTimeoutNext = true;
    else if (step.do === 'standby answers') database.endWriters();
    else if (step.do === 'exchange') {
      if (!broker.exchanges.delete('sometimes')) broker.exchanges.add('sometimes');
    } else relay.connection.isBlocked = !relay.connection.isBlocked;
    await this.#settleDown();
  }

  /** Faults pass, everything is answered: the work must come to its end by itself. */
  async heal(): Promise<void> {
    const { database, broker } = this;
    broker.healed = true;
    broker.exchanges.add('sometimes');
    database.unlock();
    database.refusesEvery = 0;
    database.endWriters();
    this.relay.connection.isBlocked = false;
    for (let n = 0; n < 400 && !this.#isDone; n += 1) {
      await this.#round(n);
      const { relay } = this;
      if (n % 5 === 1) relay.keepalive();
      if (n % 5 === 2) relay.feedFrom(n % 2 === 0 ? 'due' : 'sweep');
      if (n % 5 === 3) this.clock.advance(7_000);
      // A person gives up what holds its key.
      if (database.strict && n % 20 === 19) database.discardParked();
      await this.#settleDown();
    }
    this.relay.keepalive();
    await this.#settleDown();
  }

  #loseSlot(): void {
    const { database, broker } = this;
    database.slotLsn = null;
    this.#lostSlots += 1;
    for (const id of this.#fates.keys()) {
      const isDelivered = broker.queue.some(({ messageId }) => messageId === id);
      if (!database.find(id) && !isDelivered) this.#onlyInLog.add(id);
    }
  }

  /** Everybody does a little. */
  async #round(n: number): Promise<void> {
    const { relay } = this;
    for (let sent = 0; sent < 3 && relay.send(); sent += 1) await turn();
    if (!relay.connection.isBlocked) relay.connection.channel?.process(3);
    for (let word = 0; word < 3; word += 1) relay.connection.channel?.confirm(n + word, n % 2 === 0);
    for (let answer = 0; answer < 4; answer += 1) {
      await this.#answer(relay.databaseCalls);
      await this.#answer(relay.brokerCalls);
    }
    this.clock.advance(100);
  }

  async #settleDown(): Promise<void> {
    await turn();
    // A channel that dies as it opens ends the session; the supervisor starts the next.
    if (isWaybillError(this.relay.failure.error, 'WAYBILL_BROKER_UNAVAILABLE')) {
      await this.relay.lose(false);
      await this.startRelay();
    }
    this.check();
  }

  /** Throws the first broken rule. */
  check(): void {
    const { relay, database } = this;
    const { window, works, failure } = relay;
    const broken = [...this.#violations, ...database.violations];
    if (failure.error) broken.push(`the session failed: ${failure.error.stack ?? ''}`);
    if (window.messages > MAX_MESSAGES) broken.push(`O4: ${window.messages} messages in flight`);
    if (window.messages > 1 && window.bytes > MAX_BYTES) broken.push(`O4: ${window.bytes} bytes in flight`);
    // One for each that feeds: pump, due or sweep. Withdrawn rows have no bodies.
    const withdrawn = [...database.cancelled, ...database.discarded].filter((id) => works.find(this.#written(id)));
    const unsettled = works.size - relay.settler.refusedRows;
    if (unsettled > MAX_MESSAGES * 5 + 2 + withdrawn.length) broken.push(`O4: ${unsettled} rows unsettled`);
    if (broken.length > 0) throw new Error(broken.join('\n'));
  }

  /** The row as its transaction wrote it. */
  #written(id: string): OutboxRow {
    const { transaction, place } = this.#fates.get(id)!;
    return this.database.wal[transaction]!.rows[place]!.row;
  }

  /** Rules of the end: throws when anything committed is neither delivered nor kept with a reason. */
  checkEnd(): void {
    const { relay, database, broker } = this;
    const broken: string[] = [];
    const delivered = new Set(broker.queue.map(({ messageId }) => messageId));
    for (const [id, { fate, state }] of this.#fates) {
      const row = database.find(id);
      const arrived = delivered.has(id);
      if (database.cancelled.has(id) || database.discarded.has(id)) continue;
      if (this.#onlyInLog.has(id)) continue;
      if (state === 'parked' && !database.retried.has(id)) {
        if (arrived) broken.push(`parked row ${id} was delivered`);
        if (row?.state !== 'parked') broken.push(`parked row ${id} is ${row?.state ?? 'gone'}`);
        continue;
      }
      const bad = fate === 'poison' || fate === 'bad_header' || fate === 'no_exchange';
      const parked = row?.state === 'parked';
      if ((bad || fate === 'expired') && arrived) broken.push(`${fate} row ${id} was delivered`);
      if (bad !== parked && fate !== 'sometimes') broken.push(`${fate} row ${id} is ${row?.state ?? 'gone'}`);
      if (!bad && fate !== 'expired' && !arrived && !parked) broken.push(`${fate} row ${id} was never delivered`);
      if (row && !parked) broken.push(`${fate} row ${id} stays ${row.state}`);
    }
    if (!this.#isDone) broken.push('it does not come to rest');
    broken.push(...this.#orderViolations());
    if (!this.#isAtEnd && relay.startLsn !== database.insertLsn) {
      broken.push(`reported ${relay.reportedLsn}, and the log ends at ${database.insertLsn}`);
    }
    if (broken.length > 0) throw new Error(broken.join('\n'));
  }

  get #isDone(): boolean {
    const { relay, database } = this;
    return (
      (this.#source === 'table' || relay.hasSent(database.wal.length - 1)) &&
      relay.works.size === 0 &&
      !relay.isFeeding &&
      database.rows.every(({ state }) => ['parked', 'cancelled', 'discarded'].includes(state)) &&
      !(database.strict && database.rows.some(({ state }) => state === 'parked')) &&
      this.#isAtEnd
    );
  }

  /** The slot has nothing left to bring. */
  get #isAtEnd(): boolean {
    return this.#source === 'table' || this.relay.reportedLsn === this.database.insertLsn;
  }

  async #answer(calls: { size: number; step(): void }): Promise<void> {
    if (calls.size === 0) return;
    calls.step();
    await turn();
  }

  #commit(plans: RowPlan[], gap: number, standby: boolean): void {
    const rows = plans.map((plan, place) => {
      const id = `00000000-0000-4000-8000-${String(this.#fates.size).padStart(12, '0')}`;
      const row = rowFor(id, plan, this.clock.now());
      const { fate } = plan;
      if (plan.deleted && this.database.slotLsn === null) this.#onlyInLog.add(id);
      // The table has no blocked rows without a key.
      const state = plan.state === 'blocked' && row.key === null ? 'parked' : (plan.state ?? 'ready');
      const transaction = this.database.wal.length;
      this.#fates.set(id, { fate, state, transaction, place, key: row.key, slot: this.#lostSlots });
      return { row, state, deleted: plan.deleted && state === 'ready' };
    });
    for (const { row } of rows) this.#messages.set(row.id, messageText(row));
    this.database.commit(rows, gap, standby);
  }

  #published(relay: ModelRelay, id: string): void {
    const known = this.#fates.get(id);
    const message = relay.connection.channel?.unanswered;
    if (!known || !message) {
      this.#violations.push(`phantom ${id}`);
      return;
    }
    if (this.database.discarded.has(id)) this.#violations.push(`O3: the discarded row ${id} goes out`);
    const state = this.database.find(id)?.state ?? 'ready';
    if (state !== 'ready') this.#violations.push(`O3: the ${state} row ${id} goes out`);
    if (this.database.strict) {
      const rivals = message.filter((each) => this.#fates.get(each.messageId)?.key === known.key);
      if (known.key !== null && rivals.length > 0) this.#violations.push(`strict: two rows of ${known.key} in flight`);
    }
    if (this.database.cancelled.has(id)) this.#violations.push(`O3: the cancelled row ${id} goes out`);
    const place = known.transaction * 100 + known.place;
    const row = this.#written(id);
    const first = !this.#publishedIds.has(id);
    this.#publishedIds.add(id);
    // What its writer put off comes from the table.
    const isStreamed = known.fate !== 'later' && relay.works.find(row)?.origin === 'stream';
    if (first && !this.database.strict && isStreamed) {
      if (place < this.#lastFirst) this.#violations.push(`O5: ${id} first goes out after a later row`);
      this.#lastFirst = place;
    }
    if (message.length >= MAX_MESSAGES) this.#violations.push(`O4: ${message.length + 1} unanswered on the channel`);
  }

  /** Strict: the first copies of a key are in the order of their commits; what its writer put off comes when it is due. */
  #orderViolations(): string[] {
    if (!this.database.strict) return [];
    const last = new Map<string, { place: number; slot: number }>();
    const seen = new Set<string>();
    const broken: string[] = [];
    for (const { messageId } of this.broker.queue) {
      const known = this.#fates.get(messageId);
      if (!known || known.key === null || known.fate === 'later' || known.state !== 'ready') continue;
      if (seen.has(messageId)) continue;
      seen.add(messageId);
      const place = known.transaction * 100 + known.place;
      const before = last.get(known.key);
      // While the slot lives: of those that came with a slot that was lost, some may have been held when it was.
      const isLost = known.slot === before?.slot && known.slot < this.#lostSlots;
      if (before && place < before.place && !isLost) {
        broken.push(`strict: ${messageId} after a later row of ${known.key}`);
      }
      if (!before || place > before.place) last.set(known.key, { place, slot: known.slot });
    }
    return broken;
  }

  /** O1, O2: a position may be reported when nothing before it is owed. */
  #reported(relay: ModelRelay, settled: Lsn): void {
    const { database, broker } = this;
    if (settled < relay.reportedLsn) this.#violations.push(`O2: ${settled} after ${relay.reportedLsn}`);
    if (settled > relay.handedLsn) this.#violations.push(`O2: ${settled} was never handed over`);
    for (const [n, { commitLsn, rows }] of database.wal.entries()) {
      if (relay.startLsn === undefined || commitLsn < relay.startLsn || commitLsn >= settled) continue;
      if (!relay.hasSent(n)) this.#violations.push(`O1: ${settled} passes a transaction that is not sent`);
      for (const { row } of rows) {
        const { id } = row;
        if (database.held.has(id)) continue;
        // One that was published may stay behind: the sweep of the next session finds it.
        const isLeft = database.stuck.has(id) && (broker.confirmed.has(id) || this.#fates.get(id)?.fate === 'expired');
        if (database.find(id) && !isLeft)
          this.#violations.push(`O1, O6: ${settled} passes row ${id}, which is still there`);
        if (!broker.confirmed.has(id) && !database.expired.has(id)) {
          if (this.#fates.get(id)?.fate !== 'expired') this.#violations.push(`O1: ${settled} passes unconfirmed ${id}`);
        }
      }
    }
  }

  /** O7: every copy that reached the queue is what its row says. */
  checkCopies(): void {
    for (const message of this.broker.queue) {
      if (JSON.stringify(message) !== this.#messages.get(message.messageId)) {
        throw new Error(`O7: a copy of ${message.messageId} differs: ${JSON.stringify(message)}`);
      }
    }
  }
}

function rowFor(id: string, { fate, bytes, key, state }: RowPlan, nowMs: number): OutboxRow {
  const isHeld = state === 'parked' || state === 'blocked';
  return outboxRow({
    id,
    type: fate,
    key: key === undefined ? id.slice(-2) : key === 0 ? null : `key ${key}`,
    body: Buffer.alloc(bytes, id),
    bodyKind: 'bytes',
    headers: fate === 'bad_header' ? '{"CC": "x"}' : '{}',
    exchange: fate === 'no_exchange' ? 'nowhere' : fate === 'sometimes' ? 'sometimes' : null,
    // What is parked or blocked has been tried, or had its turn.
    deliverAt: fate === 'later' ? timestampOf(isHeld ? nowMs : nowMs + 2_000) : null,
    expiresAt: fate === 'expired' ? '1970-01-01 00:00:00+00' : null,
  });
}

/** As PostgreSQL writes it. */
function timestampOf(ms: number): string {
  return new Date(ms).toISOString().replace('T', ' ').replace('Z', '+00');
}

function messageText(row: OutboxRow): string {
  return JSON.stringify(toMessage(row, { exchange: 'events', routingKey: '{type}', maxBodyBytes: 1_000 }));
}

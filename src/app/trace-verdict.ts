import { counted } from '../core/counted.js';
import type { MessageRow } from '../postgres/operator-rows.js';
import type { Hindrance, InboxRow, Neighbours } from '../postgres/inbox-rows.js';

/** Where the trouble is, if there is any; what that means; what to type next (null: nothing). */
export interface Verdict {
  verdict:
    'no trouble' | 'on its way' | 'source data' | 'this consumer' | 'the route' | 'given up' | 'not clear' | 'unknown';
  reason: string;
  next: string | null;
}

type InboxEvidence = InboxRow & { neighbours: Neighbours | null; hindrance: Hindrance | null };

/** What the verdict is made from. */
export interface TraceEvidence {
  id: string;
  outbox: MessageRow | null;
  /** Null: this role may not read it. */
  history: readonly MessageRow[] | null;
  /** Null: not installed, or this role may not read it. */
  inbox: readonly InboxEvidence[] | null;
}

/** Faults that the row itself carries, wherever it is sent. */
const FAULTS_OF_DATA = ['too_large', 'name_too_long', 'bad_property', 'bad_header', 'reserved_header'];
const DEATHS_OF_DATA = ['malformed', 'no-id', 'conflict'];

/** The verdict on one message; pure. What holds it up first counts: the outbox, then its consumers. */
export function verdictOf(evidence: TraceEvidence): Verdict {
  const { id, outbox, history, inbox } = evidence;
  if (outbox && outbox.state !== 'ready') return heldVerdict(outbox);
  const failing = (inbox ?? []).filter(isFailing);
  const [first] = failing;
  if (first) return withPause(failureVerdict(id, first, failing, inbox ?? []), first);
  if (outbox) {
    const reason = 'it is in the outbox and goes out next; if it stays there, see what the relay does';
    return { verdict: 'on its way', reason, next: 'waybill status' };
  }
  const open = (inbox ?? []).filter(({ status }) => !['done', 'discarded', 'dead'].includes(status));
  if (open[0]) return openVerdict(open[0]);
  const discarded = (inbox ?? []).find(({ status }) => status === 'discarded');
  if (discarded) {
    const reason = `an operator discarded it for consumer ${discarded.consumer}`;
    return {
      verdict: 'given up',
      reason,
      next: `waybill inbox replay --consumer ${word(discarded.consumer)} ${word(discarded.messageId)}`,
    };
  }
  const applied = (inbox ?? []).filter(({ status }) => status === 'done').map(({ consumer }) => consumer);
  if (applied.length > 0) return { verdict: 'no trouble', reason: `applied once by ${applied.join(', ')}`, next: null };
  if (!history?.[0] && (history === null || inbox === null)) return unreadVerdict(id, history, inbox);
  return leftVerdict(id, history);
}

/** What is in no table that was read may be in those that were not: to say more would be a guess. */
function unreadVerdict(id: string, history: TraceEvidence['history'], inbox: TraceEvidence['inbox']): Verdict {
  const unread = [...(history === null ? ['the history'] : []), ...(inbox === null ? ['the inbox'] : [])];
  const where = history === null ? ', where it is once it was published' : '';
  return {
    verdict: 'not clear',
    reason: `it is not in the tables that this role may read; it may not read ${unread.join(' and ')}${where}; ask with the role of an operator`,
    next: `WAYBILL_DATABASE_URL="$OPERATOR_URL" waybill trace ${word(id)}`,
  };
}

function heldVerdict(row: MessageRow): Verdict {
  const fault = /^([a-z_]+):/.exec(row.error ?? '')?.[1] ?? '';
  switch (row.state) {
    case 'parked':
      if (FAULTS_OF_DATA.includes(fault)) {
        const reason = `the row itself cannot be sent (${fault}); whoever wrote it must write another one`;
        return { verdict: 'source data', reason, next: `waybill outbox discard ${row.id}` };
      }
      return {
        verdict: 'the route',
        reason: 'RabbitMQ has no place for it, or refuses it; mend exchange, binding or right, then try it again',
        next: `waybill outbox retry ${row.id}`,
      };
    case 'blocked':
      return {
        verdict: 'on its way',
        reason: 'it waits behind an earlier row of its key that could not go out',
        next: `waybill outbox list --state parked --key ${word(row.key ?? '')}`,
      };
    case 'scheduled': {
      const at = row.nextAttemptAt === null ? '' : ` until ${row.nextAttemptAt.toISOString()}`;
      const reason = `it waits${at}${row.error === null ? '' : ` for its next attempt (${row.error})`}`;
      return { verdict: 'on its way', reason, next: row.error === null ? null : `waybill outbox retry ${row.id}` };
    }
    default:
      return { verdict: 'given up', reason: `it was ${row.state} and will not be published`, next: null };
  }
}

function isFailing({ status, failures, abandoned, deadReason }: InboxRow): boolean {
  return (
    status === 'dead' ||
    (status === 'waiting' && failures + abandoned > 0) ||
    (status !== 'done' && deadReason !== null)
  );
}

function failureVerdict(
  id: string,
  row: InboxRow & { neighbours: Neighbours | null },
  failing: readonly InboxRow[],
  all: readonly InboxRow[],
): Verdict {
  const next = `waybill inbox show --consumer ${word(row.consumer)} ${word(row.messageId)}`;
  if (row.deadReason !== null && DEATHS_OF_DATA.includes(row.deadReason)) {
    const reason = {
      malformed: 'it cannot be kept as text; its sender must send another one',
      'no-id': 'it came without an id; its sender must give one',
      conflict: 'another message with this id and another body came before; its sender used the id twice',
    }[row.deadReason];
    return { verdict: 'source data', reason: reason ?? row.deadReason, next };
  }
  if (row.deadReason === 'not-accepted') {
    const what = `${row.type ?? 'no type'}@${row.schemaVersion ?? 1}`;
    return { verdict: 'this consumer', reason: `${row.consumer} does not accept ${what}`, next };
  }
  const applied = all.filter(({ status }) => status === 'done').map(({ consumer }) => consumer);
  if (applied.length > 0) {
    const reason = `${applied.join(', ')} applied it, ${row.consumer} does not`;
    return { verdict: 'this consumer', reason, next };
  }
  const others = new Set(failing.map(({ consumer }) => consumer));
  if (others.size > 1) {
    return { verdict: 'source data', reason: `it fails at ${[...others].join(' and ')} alike`, next };
  }
  const { applied: done = 0, failing: alike = 0 } = row.neighbours ?? {};
  if (alike > 0 && alike >= done) {
    const reason = `${row.consumer} fails on ${counted(alike, 'other message')} of this type, too (${counted(done, 'was', 'were')} applied around it)`;
    return { verdict: 'this consumer', reason, next };
  }
  if (done > 0) {
    const reason = `${row.consumer} applied ${counted(done, 'other message')} of this type around it (${alike} failed)`;
    return { verdict: 'source data', reason, next };
  }
  const reason = `no other message of this type is there to compare it with; message ${id} fails at ${row.consumer}`;
  return { verdict: 'not clear', reason, next };
}

/** What failed is not tried again either while its consumer is paused. */
function withPause(verdict: Verdict, { consumer, hindrance }: InboxEvidence): Verdict {
  const pause = hindrance?.pause;
  if (!pause) return verdict;
  const on = pause.by === 'operator' ? ` (\`${pauseMend(consumer, pause)}\`)` : '';
  return { ...verdict, reason: `${verdict.reason}; and it waits: ${pauseText(pause)}${on}` };
}

function openVerdict({ consumer, status, nextAttemptAt, lockedBy, hindrance }: InboxEvidence): Verdict {
  const { ahead, pause } = hindrance ?? { ahead: null, pause: null };
  const behind =
    ahead === null
      ? 'an earlier message of its key'
      : `message ${ahead.messageId} of its key, which is ${ahead.status}`;
  const what =
    {
      pending: 'it waits to be taken up',
      running: `it is being processed${lockedBy === null ? '' : ` by ${lockedBy}`}`,
      blocked: `it waits behind ${behind}`,
      waiting: `it waits${nextAttemptAt === null ? '' : ` until ${nextAttemptAt.toISOString()}`}`,
    }[status] ?? status;
  const reason = `at consumer ${consumer} ${what}`;
  const verdict = 'on its way';
  if (status === 'running') return { verdict, reason, next: null };
  if (pause) return { verdict, reason: `${reason}; ${pauseText(pause)}`, next: pauseMend(consumer, pause) };
  return { verdict, reason, next: ahead === null ? 'waybill consumer list' : `waybill trace ${word(ahead.messageId)}` };
}

function pauseText({ at, by, reason, actor }: NonNullable<Hindrance['pause']>): string {
  const why = reason === null ? '' : `: ${reason}`;
  if (by === 'breaker') return `its handler is broken, and tried with one message at a time${why}`;
  return `the consumer is paused by ${actor ?? 'an operator'} since ${at.toISOString()}${why}`;
}

function pauseMend(consumer: string, { by }: NonNullable<Hindrance['pause']>): string {
  return by === 'breaker' ? 'waybill doctor' : `waybill consumer resume ${word(consumer)}`;
}

function leftVerdict(id: string, history: readonly MessageRow[]): Verdict {
  const [last] = history;
  switch (last?.state) {
    case undefined: {
      const reason =
        'no table of Waybill knows it: never written, rolled back, or longer ago than the history goes back';
      return { verdict: 'unknown', reason, next: null };
    }
    case 'published':
      return {
        verdict: 'no trouble',
        reason: `RabbitMQ has it: exchange ${last.exchange ?? ''}, routing key ${last.routingKey ?? ''}; what its consumers did with it is not known here`,
        next: `waybill outbox replay ${id} --dry-run`,
      };
    case 'accepted':
      return {
        verdict: 'the route',
        reason: 'no queue was bound when it was published, and relay.onUnroutable accepts that: nobody has it',
        next: `waybill outbox replay ${id} --dry-run`,
      };
    default:
      return { verdict: 'given up', reason: `it was ${last?.state ?? ''} and never published`, next: null };
  }
}

/** An argument as a shell takes it. */
function word(text: string): string {
  return /^[\w.:@%+=,/-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

import type { OutOfReach } from '../outbox/doubtful.js';
import type { LockHolder } from '../outbox/ports.js';
import type { Refusal } from '../outbox/refusal.js';

/** What is said of rows out of reach. `what` names processes and constraints, never a row, a user or an address. */
export interface OutOfReachText {
  id: 'locked-rows' | 'refused-rows';
  what: string;
  /** How to find out more, and what it leads to; for those who may ask. */
  more: string;
  next: string;
}

/** Most urgent first; empty when every row can be reached. Pure. */
export function outOfReachTexts(outOfReach: OutOfReach): OutOfReachText[] {
  return [...stoppedText(outOfReach), ...lockedText(outOfReach), ...refusedText(outOfReach)];
}

function lockedText({ locked, lockedForMs, holders }: OutOfReach): OutOfReachText[] {
  if (locked === 0) return [];
  const [holder] = holders;
  const by =
    holders.length === 0
      ? 'another session (or wait for a synchronous standby)'
      : `${holders.slice(0, 3).map(briefly).join(', ')}${holders.length > 3 ? ' and others' : ''}`;
  const whose = holders.flatMap(({ user, application }) => application ?? user ?? []);
  return [
    {
      id: 'locked-rows',
      what: `${rows(locked)} of the outbox ${locked === 1 ? 'is' : 'are'} locked by ${by} for ${Math.round(lockedForMs / 1000)} s`,
      more: `${whose.length > 0 ? `It is of ${[...new Set(whose)].slice(0, 3).join(', ')}. ` : ''}Until that transaction ends, PostgreSQL keeps its log, a restart sends these messages again, and past two windows (relay.maxInFlight) of such rows nothing goes out.`,
      next: holder ? ending(holder) : 'waybill doctor',
    },
  ];
}

function stoppedText({ stopped }: OutOfReach): OutOfReachText[] {
  if (!stopped) return [];
  return [
    {
      id: 'refused-rows',
      what: `${stopped.doing}: ${whoRefuses(stopped, 'every such statement')}`,
      more: 'Change or drop what refuses it; it is tried again by itself.',
      next: 'waybill doctor',
    },
  ];
}

function refusedText({ refused, waiting, refusal }: OutOfReach): OutOfReachText[] {
  if (refused === 0 || !refusal) return [];
  const isTakenUp = refused > waiting;
  return [
    {
      id: 'refused-rows',
      what: `${rows(refused)} cannot be ${isTakenUp ? 'removed or set aside' : 'let go'}: ${whoRefuses(refusal, 'it')}`,
      more: `The first is message ${refusal.messageId}. Change or drop what refuses it; it is tried again every 30 s. Until then ${isTakenUp ? 'a restart sends again what was published of these; for the others PostgreSQL keeps its log' : 'it waits in the table, and the others go on'}.`,
      next: 'waybill doctor',
    },
  ];
}

/** As "constraint c of your own refuses it (SQLSTATE 23514)". */
function whoRefuses({ sqlState, constraint, column, trigger }: Refusal, what: string): string {
  const unknown = sqlState === null ? 'a trigger' : 'a constraint or trigger';
  const by = constraint
    ? `constraint ${constraint}`
    : trigger
      ? `trigger ${trigger}`
      : column
        ? `column ${column}`
        : unknown;
  const how = sqlState === null ? `returns NULL for ${what}` : `refuses ${what} (SQLSTATE ${sqlState})`;
  return `${by} of your own ${how}`;
}

function briefly({ pid, prepared }: LockHolder): string {
  return pid === null ? `prepared transaction ${prepared ?? '?'}` : `server process ${pid}`;
}

/** To be looked at before it is typed: it ends somebody's work. */
function ending({ pid, prepared }: LockHolder): string {
  if (pid !== null) return `psql -c "select pg_terminate_backend(${pid})"`;
  return prepared === null ? 'waybill doctor' : `psql -c "rollback prepared '${prepared.replaceAll("'", "''")}'"`;
}

function rows(count: number): string {
  return `${count.toLocaleString('en-US')} ${count === 1 ? 'row' : 'rows'}`;
}

import type { Config } from '../config/load.js';
import { counted } from '../core/counted.js';
import { spoken } from '../core/spoken.js';
import { DEAD_LETTER_EXCHANGE } from '../core/topology.js';
import type { StateCount } from '../postgres/backlog.js';
import { LATE_MS, type ConsumerBacklog, type Uncopied } from '../postgres/inbox-backlog.js';
import { outOfReachTexts } from './out-of-reach.js';
import type { StatusFacts } from './status.js';

/** Something that a person should see to, with the next command to type. */
export interface StatusProblem {
  /** Stable, for scripts. */
  id: string;
  problem: string;
  next: string;
}

/** A ready row this old means that publishing does not keep up. */
const OLD_ROW_MS = 60_000;
/** Below this, a slot that is limited is soon lost. */
const LITTLE_SAFE_WAL_BYTES = 512 * 2 ** 20;

/** What is wrong, most urgent first; empty when all is well. Pure. */
export function findProblems(facts: StatusFacts, config: Config): StatusProblem[] {
  // F121: a configuration that only consumes does not miss a relay, which is somebody else's.
  const { enabled } = config.relay;
  return [
    ...reachability(facts, enabled),
    ...(enabled ? identity(facts) : []),
    ...(enabled && facts.database.error === null ? [...activity(facts, config), ...slot(facts, config)] : []),
    ...(enabled ? outOfReach(facts) : []),
    ...backlog(facts, config),
    ...consumers(facts),
  ];
}

function reachability({ database, broker }: StatusFacts, runsRelay: boolean): StatusProblem[] {
  const problems: StatusProblem[] = [];
  if (database.error) {
    const schemaIsWrong = database.error.code.startsWith('WAYBILL_SCHEMA_');
    problems.push({
      id: schemaIsWrong ? 'schema' : 'database',
      problem: withHint(database.error.message, schemaIsWrong ? null : database.error.hint),
      next:
        database.error.code === 'WAYBILL_SCHEMA_TOO_NEW'
          ? 'waybill --version'
          : schemaIsWrong
            ? 'waybill migrate up'
            : 'waybill doctor',
    });
  }
  if (broker.error) {
    problems.push({ id: 'broker', problem: withHint(broker.error.message, broker.error.hint), next: 'waybill doctor' });
  }
  const state = broker.facts?.exchange;
  if (runsRelay && (state === 'differs' || state === 'refused')) {
    const why = state === 'differs' ? 'exists with another type or other arguments' : 'may not be used by this user';
    problems.push({ id: 'exchange', problem: `Exchange ${broker.exchange} ${why}.`, next: 'waybill doctor' });
  }
  return problems;
}

function identity({ record, database, broker, otherRelays, relay }: StatusFacts): StatusProblem[] {
  const problems: StatusProblem[] = [];
  const here = database.systemIdentifier;
  if (record?.systemIdentifier && here && record.systemIdentifier !== here) {
    problems.push({
      id: 'identity',
      problem: `The relay worked with PostgreSQL cluster ${record.systemIdentifier}; this is ${here}. It will not publish from here until you say so.`,
      next: `waybill relay adopt --expect ${here}`,
    });
  }
  const cluster = broker.facts?.cluster;
  if (record?.brokerCluster && cluster && record.brokerCluster !== cluster) {
    problems.push({
      id: 'identity',
      problem: `The relay worked with RabbitMQ cluster ${record.brokerCluster}; this is ${cluster}. It will not publish to it until you say so.`,
      next: here ? `waybill relay adopt --expect ${here}` : 'waybill relay adopt',
    });
  }
  if (otherRelays.length > 0) {
    problems.push({
      id: 'second-relay',
      problem: `This schema also has the relay ${otherRelays.join(', ')}; one schema has one relay, and ${relay} does not start beside it.`,
      next: 'waybill relay list',
    });
  }
  return problems;
}

function activity({ activity: now, backlog: rows, record, live }: StatusFacts, config: Config): StatusProblem[] {
  if (live && !live.ready && now === 'active') {
    return [
      { id: 'not-ready', problem: `The relay runs and is not ready: ${live.reason ?? '?'}.`, next: 'waybill doctor' },
    ];
  }
  if (now === 'stopped') {
    const waiting = rows?.states.find(({ state }) => state === 'ready');
    const cost = waiting ? `; ${amount(waiting)} ${waiting.count === 1 ? 'waits' : 'wait'} to be published` : '';
    return [{ id: 'stopped', problem: `No relay is running${cost}.`, next: 'waybill run' }];
  }
  if (now === 'starting' && record && record.passUptoSeq === null && config.relay.source === 'wal') {
    return [
      {
        id: 'starting',
        problem:
          'A relay holds the lock and does not stream. Normal for seconds after a start; if it stays, it waits for something.',
        next: 'waybill doctor',
      },
    ];
  }
  return [];
}

function outOfReach({ live }: StatusFacts): StatusProblem[] {
  if (!live) return [];
  return outOfReachTexts(live.outOfReach).map(({ id, what, more, next }) => ({
    id,
    problem: `${what}. ${more}`,
    next,
  }));
}

function slot({ slot: found, slotName, record, database }: StatusFacts, config: Config): StatusProblem[] {
  if (config.relay.source !== 'wal' || slotName === null) return [];
  if (!found) {
    if (!record) return [];
    const problem = `Replication slot ${slotName} does not exist. The next start makes a new one and reads the rows from the table; ${lostWithSlot(record)}.`;
    return [{ id: 'slot', problem, next: 'waybill run' }];
  }
  if (found.database !== database.name || found.plugin !== 'pgoutput') {
    const owner = `database ${found.database ?? '(none)'}, plugin ${found.plugin ?? '(physical)'}`;
    const problem = `Replication slot ${slotName} belongs to ${owner}; Waybill will not touch it. Set another relay.name.`;
    return [{ id: 'slot', problem, next: 'waybill doctor' }];
  }
  if (found.walStatus === 'lost') {
    const problem = `Replication slot ${slotName} is lost${found.invalidationReason ? ` (${found.invalidationReason})` : ''}. The next start replaces it and reads the rows from the table; ${lostWithSlot(record)}.`;
    return [{ id: 'slot', problem, next: 'waybill run' }];
  }
  const problems: StatusProblem[] = [];
  const soonLost = found.safeWalBytes !== null && found.safeWalBytes < LITTLE_SAFE_WAL_BYTES;
  if (found.walStatus === 'unreserved' || soonLost) {
    problems.push({
      id: 'slot',
      problem: `Replication slot ${slotName} is about to be lost: the server keeps no more WAL for it (max_slot_wal_keep_size).`,
      next: 'waybill doctor',
    });
  }
  if (found.keptWalBytes !== null && found.keptWalBytes > config.relay.maxKeptWalBytes / 2) {
    const share = Math.round((found.keptWalBytes / config.relay.maxKeptWalBytes) * 100);
    const lag = found.lagBytes ?? 0;
    const why = lag < found.keptWalBytes / 2 ? 'an old open transaction holds it' : 'it waits to be published';
    problems.push({
      id: 'kept-wal',
      problem: `The slot keeps ${share} % of relay.maxKeptWal on the disk of the database; ${why}.`,
      next: 'waybill doctor',
    });
  }
  return problems;
}

function lostWithSlot(record: StatusFacts['record']): string {
  if (!record?.insertThenDeleteSeen) return 'nothing is lost';
  return 'rows that applications deleted themselves and that were not published yet are lost';
}

function backlog({ backlog: rows, activity: now, parkedErrors }: StatusFacts, config: Config): StatusProblem[] {
  const problems: StatusProblem[] = [];
  const of = (state: string) => rows?.states.find((row) => row.state === state);
  const ready = of('ready');
  if (now !== 'stopped' && (ready?.oldestAgeMs ?? 0) > OLD_ROW_MS) {
    problems.push({
      id: 'behind',
      problem: `The oldest row that is ready has waited for more than ${Math.floor((ready?.oldestAgeMs ?? 0) / 60_000)} min.`,
      next: 'waybill doctor',
    });
  }
  const parked = of('parked');
  if (parked) {
    const [commonest] = parkedErrors;
    const often = parked.count === 1 ? '' : ' Most often:';
    const example = commonest ? `${often} ${commonest.error}` : '';
    problems.push({
      id: 'parked',
      problem: `${amount(parked)} ${parked.count === 1 ? 'is parked: it could not be published and is kept with its error' : 'are parked: they could not be published and are kept with their errors'}.${example}`,
      next: 'waybill outbox list --state parked',
    });
  }
  const blocked = of('blocked');
  if (blocked && config.relay.ordering === 'strict') {
    problems.push({
      id: 'blocked',
      problem: `${amount(blocked)} ${blocked.count === 1 ? 'is' : 'are'} blocked behind a parked row of the same key.`,
      next: 'waybill outbox list --state blocked',
    });
  }
  return problems;
}

function consumers({ consumers: all }: StatusFacts): StatusProblem[] {
  const problems: StatusProblem[] = [];
  for (const consumer of all ?? []) {
    const { name, owner, pausedAt, pausedBy, pausedReason, renamingTo, states, late, uncopied } = consumer;
    const whose = `Consumer ${name}${owner === null ? '' : ` (${owner})`}`;
    if (renamingTo !== null) {
      problems.push({
        id: 'consumer-renaming',
        problem: `${whose} is half renamed to ${renamingTo}: until that is through, nothing is received or handed out under either name. Unless somebody is at it now, go on with it, or (while no message has the new name) take it back with --cancel.`,
        next: `waybill consumer rename ${name} ${renamingTo}`,
      });
    }
    if (pausedAt) {
      const why = pausedReason === null ? '' : `: ${pausedReason}`;
      if (pausedBy === 'breaker') {
        problems.push({
          id: 'consumer-broken',
          problem: `The handler of ${whose.replace('C', 'c')} is broken${why}. It is tried with one message at a time.`,
          next: `waybill doctor`,
        });
      } else
        problems.push({
          id: 'consumer-paused',
          problem: `${whose} is paused${why}.`,
          next: `waybill consumer resume ${name}`,
        });
    } else if (late && renamingTo === null)
      problems.push({ id: 'inbox-behind', problem: behindText(consumer, late), next: 'waybill consumer list' });
    if (uncopied?.oldestAgeMs != null && uncopied.oldestAgeMs > LATE_MS) {
      problems.push({ id: 'copies', problem: copiesText(consumer, uncopied), next: 'waybill doctor' });
    }
    const dead = states?.find(({ state }) => state === 'dead');
    if (dead) {
      const problem = `${whose} has given up ${amount(dead, 'message')}.`;
      problems.push({ id: 'dead', problem, next: `waybill dead list --consumer ${name}` });
    }
  }
  return problems;
}

function behindText({ name, owner, handler }: ConsumerBacklog, late: NonNullable<ConsumerBacklog['late']>): string {
  const whose = `consumer ${name}${owner === null ? '' : ` (${owner})`}`;
  const forMinutes = `for more than ${LATE_MS / 60_000} min`;
  const what = `${amount(late, 'message')} of ${whose} ${late.count === 1 ? 'is' : 'are'} due ${forMinutes} and not taken up`;
  const since = `the oldest was received ${spoken(late.oldestAgeMs ?? 0)} ago`;
  const who =
    handler === 'store'
      ? 'Does the application that claims them run, and keep up?'
      : 'Is a process running that has this consumer (waybill run), and does its handler keep up?';
  return `${what.charAt(0).toUpperCase()}${what.slice(1)}; ${since}. ${who}`;
}

/** F105: whoever reads the dead-letter exchange misses them. */
function copiesText({ name }: ConsumerBacklog, uncopied: Uncopied): string {
  const { count, refused, oldestAgeMs } = uncopied;
  const isOne = count === 1;
  const what = `${amount(uncopied, 'dead message')} of consumer ${name} ${isOne ? 'has' : 'have'} no copy on exchange ${DEAD_LETTER_EXCHANGE}`;
  const since = `${isOne ? 'it' : 'the first'} died ${spoken(oldestAgeMs ?? 0)} ago`;
  const why =
    refused > 0
      ? `RabbitMQ refused ${refused === count ? (isOne ? 'it' : 'them') : `${refused} of them`}, as the log says; ${refused === 1 ? 'it is' : 'they are'} tried again within the hour.`
      : 'Is a process running that has this consumer (waybill run), and what does its /readyz say of copies?';
  return `${what.charAt(0).toUpperCase()}${what.slice(1)}; ${since}. ${why}`;
}

function amount({ count, accuracy }: Pick<StateCount, 'count' | 'accuracy'>, one = 'row'): string {
  return `${accuracy === 'exact' ? '' : `${accuracy.replace('-', ' ')} `}${counted(count, one)}`;
}

function withHint(message: string, hint: string | null): string {
  const sentence = /[.!?]$/.test(message) ? message : `${message}.`;
  return hint === null ? sentence : `${sentence} ${hint}`;
}

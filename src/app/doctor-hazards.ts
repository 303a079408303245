import type { Config } from '../config/load.js';
import { DEAD_COUNTED, type ConsumerInspection, type Hazards } from '../postgres/inspect-hazards.js';
import type { TopologyStep } from '../rabbitmq/topology.js';
import { fail, ok, warn, type Finding } from './doctor-findings.js';

const MEBIBYTE = 2 ** 20;
const GIBIBYTE = 2 ** 30;
/** More than a relay that is started anew finds; what is left over here for good grows past it soon. */
const LEFT_OVER_BYTES = 64 * MEBIBYTE;

/** What works today and hurts some day; pure. */
export function checkHazards(hazards: Hazards, { database, relay }: Config): Finding[] {
  const { schema } = database;
  const findings: Finding[] = [];
  if (hazards.encoding === 'UTF8') findings.push(ok('encoding', 'the database is encoded in UTF8'));
  else {
    const mend = 'create the database with encoding UTF8; messages hold any character';
    findings.push(fail('encoding', `the database is encoded in ${hazards.encoding}`, mend));
  }
  if (hazards.readsOnly) {
    const mend = 'alter role ... reset default_transaction_read_only; (or the same of the database)';
    findings.push(fail('read-only', 'transactions of this role are read-only by default', mend));
  }
  if (!hazards.fsync || !hazards.fullPageWrites) {
    const names = [hazards.fsync ? '' : 'fsync', hazards.fullPageWrites ? '' : 'full_page_writes'].filter(Boolean);
    const mend = 'switch it on and restart: what was committed, or confirmed to RabbitMQ, must not be lost by a crash';
    findings.push(warn('durability', `off: ${names.join(' and ')}; a crash of the machine loses committed rows`, mend));
  }
  if (!hazards.autovacuum) {
    const mend = 'alter system set autovacuum = on; select pg_reload_conf();';
    findings.push(warn('autovacuum', 'autovacuum is off: the tables of a queue grow without bound', mend));
  }
  findings.push(...checkSlots(hazards.idleSlots, relay.maxKeptWalBytes, schema));
  for (const table of hazards.unlogged) {
    const mend = `alter table ${schema}.${table} set logged;`;
    const what = `${schema}.${table} is unlogged: its rows are not in the WAL, and a crash empties it`;
    findings.push(fail('unlogged', what, mend));
  }
  for (const table of hazards.rowSecurity) {
    const mend = `alter table ${schema}.${table} disable row level security;`;
    findings.push(fail('row-security', `row level security hides rows of ${schema}.${table} from this role`, mend));
  }
  if (hazards.triggers.length > 0) {
    const what = `triggers or rules of your own: ${hazards.triggers.join(', ')}`;
    findings.push(
      warn(
        'triggers',
        what,
        'take them away, or see that they never change, drop, refuse or slow down a row, and name with its schema what they use',
      ),
    );
  }
  if (hazards.constraints.length > 0) {
    const what = `constraints of your own may refuse what the relay does with a row of the outbox: ${hazards.constraints.join('; ')}`;
    const mend =
      'drop them, or see that they let the relay set state, attempts and last_error, delete a row, and write one back without your columns (null or their default): a row that is refused keeps its place in the log, and WAL with it';
    findings.push(warn('constraints', what, mend));
  }
  for (const { name, isOurs } of hazards.openSchemas) {
    const whose = isOurs
      ? 'in which the functions of Waybill look for their own'
      : "which is on the search path of this role: what a function of handler kind sql or a trigger names without its schema may be a stranger's, and runs as this role";
    const mend = `revoke create on schema ${name} from public;`;
    findings.push(warn('search-path', `everybody may create in schema ${name}, ${whose}`, mend));
  }
  if (hazards.rowsInDefaultPartition === true) {
    const mend = `select * from ${schema}.keep_history(); it moves them where it can; else they are trimmed by age`;
    findings.push(warn('history-partitions', 'the default partition of the history holds rows', mend));
  }
  return findings;
}

/** Slots that nobody reads. What other databases' relays leave for a while is their business, unless it is much. */
function checkSlots(slots: Hazards['idleSlots'], maxKeptWalBytes: number, schema: string): Finding[] {
  const limit = Math.max(maxKeptWalBytes, GIBIBYTE);
  return slots.flatMap(({ name, keptBytes, database, isHere }) => {
    const isWaybill = name.startsWith('waybill_') && database !== null;
    if (keptBytes <= (isWaybill && isHere ? LEFT_OVER_BYTES : limit)) return [];
    const kept = `nobody reads replication slot ${name}, which keeps ${amountOf(keptBytes)} of WAL`;
    const drop = `select pg_drop_replication_slot('${name}');`;
    if (!isWaybill) return [warn('foreign-slots', kept, `find out whose it is; if nobody needs it: ${drop}`)];
    const whose = isHere
      ? `by its name it is a Waybill relay's of this database, and schema ${schema} does not know it: another schema's, or left by one that was dropped, or by another relay.name`
      : `by its name it is a Waybill relay's of database ${database}, which is stopped, or gone for good`;
    const mend = `if its relay is only stopped, start it; if its schema or its relay is gone for good: ${drop}`;
    return [warn('left-slots', `${kept}; ${whose}`, mend)];
  });
}

function amountOf(bytes: number): string {
  return bytes < GIBIBYTE ? `${Math.round(bytes / MEBIBYTE)} MiB` : `${(bytes / GIBIBYTE).toFixed(1)} GiB`;
}

/** What is seen of the configured consumers in the database, and of those that are registered; pure. */
export function checkConsumers(
  inspected: readonly ConsumerInspection[],
  registered: readonly { name: string; queue: string }[],
  { database: { schema }, consumers }: Config,
): Finding[] {
  const findings: Finding[] = [];
  for (const { name, handler, pausedBy, pausedReason, grants, dead } of inspected) {
    const config = consumers.find((one) => one.name === name);
    const id = `consumer-${name}`;
    const before = findings.length;
    const called = config?.handler.kind === 'sql' ? config.handler.function : '';
    if (handler === 'missing') {
      const mend = `create function ${called}(message ${schema}.inbox_message) ..., or correct handler.function`;
      findings.push(fail(id, `function ${called}(${schema}.inbox_message) of consumer ${name} does not exist`, mend));
    }
    if (handler === 'refused') {
      const mend = `grant usage on schema ${called.split('.')[0] ?? ''}, execute on function ${called} to this role`;
      findings.push(fail(id, `this role may not call ${called} of consumer ${name}`, mend));
    }
    if (config?.handler.kind === 'store' && grants === 0) {
      const mend = `select ${schema}.grant_consumer('${name}', '<role of the application>');`;
      findings.push(warn(id, `no role may claim messages of consumer ${name}`, mend));
    }
    if (pausedBy !== null) {
      const why = pausedReason === null ? '' : `: ${pausedReason}`;
      findings.push(
        pausedBy === 'breaker'
          ? warn(
              id,
              `the handler of consumer ${name} is broken${why}`,
              'mend the handler; it is tried until it answers',
            )
          : warn(id, `consumer ${name} is paused by ${pausedBy}${why}`, `waybill consumer resume ${name}`),
      );
    }
    if (dead > 0) {
      const count =
        dead === DEAD_COUNTED
          ? `${DEAD_COUNTED.toLocaleString('en-US')} or more messages are`
          : `${dead} ${dead === 1 ? 'message is' : 'messages are'}`;
      findings.push(
        warn(id, `${count} dead at consumer ${name}`, `waybill dead list --consumer ${name} --group error`),
      );
    }
    if (findings.length === before) findings.push(ok(id, `consumer ${name} has what it needs`));
  }
  const known = new Set(inspected.map(({ name }) => name));
  for (const { name, queue } of registered.filter((one) => !known.has(one.name))) {
    const heir = consumers.find((one) => one.queue === queue);
    if (heir) {
      const mend = `if it is the same one: waybill consumer rename ${name} ${heir.name}; a new name forgets what was applied`;
      findings.push(
        fail('consumer-renamed', `consumer ${heir.name} has the queue of ${name}, which is registered`, mend),
      );
    } else {
      const mend = `if it is gone for good: waybill consumer forget ${name}`;
      findings.push(ok('consumers-elsewhere', `consumer ${name} is registered and not configured here (${mend})`));
    }
  }
  return findings;
}

/** What the broker has of the consumers' queues and exchanges; policies cannot be seen by AMQP. Pure. */
export function checkTopology(steps: readonly TopologyStep[], { consumers }: Config): Finding[] {
  if (consumers.length === 0) return [];
  const declares = consumers.every(({ topology }) => topology === 'assert');
  const id = 'topology';
  const findings = steps.flatMap(({ kind, name, detail, state }): Finding[] => {
    switch (state) {
      case 'differs':
        return [
          fail(
            id,
            `${kind} ${name} is there with other properties than ${detail}`,
            'delivery limit, dead-lettering and overflow decide whether messages are lost: delete it when it is empty and apply topology again, or use another queue',
          ),
        ];
      case 'refused':
        return [
          fail(
            id,
            `the broker's user may not look at ${kind} ${name}`,
            'see the permissions of: waybill topology plan',
          ),
        ];
      case 'no-plugin':
        return [
          fail(
            id,
            'a consumer has delay: x-delayed-message, and the broker does not have that plugin; the daemon wakes its retries itself',
            'rabbitmq-plugins enable rabbitmq_delayed_message_exchange on every node, or set delay: ttl-queues',
          ),
        ];
      case 'no-source':
        return [
          fail(
            id,
            `queue ${name} is to be bound ${detail}, an exchange that is not there`,
            'it is declared by those who publish to it: see that it is there, or correct its name',
          ),
        ];
      case 'missing':
        return declares || kind === 'binding'
          ? []
          : [fail(id, `${kind} ${name} does not exist`, 'waybill topology apply')];
      default:
        return [];
    }
  });
  if (findings.length > 0) return findings;
  return [ok(id, 'queues and exchanges of the consumers are as they must be, or are made by the start')];
}

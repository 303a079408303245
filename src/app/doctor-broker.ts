import type { Config } from '../config/load.js';
import { staysLocal } from '../config/hosts.js';
import { passwordsIn } from '../config/urls.js';
import type { RelayEntry } from '../postgres/inspect.js';
import type { BrokerFacts } from '../rabbitmq/inspect.js';
import { isOwnWord } from '../telemetry/redact.js';
import { fail, note, ok, warn, type Finding } from './doctor-findings.js';

const OLDEST_VERSION: readonly [number, number] = [3, 10];

/** Every check of the broker; pure. `record` is what the relay remembers of it. */
export function checkBroker(facts: BrokerFacts, record: RelayEntry | undefined, config: Config): Finding[] {
  if (!config.relay.enabled) return [version(facts), ...unseen(facts, config)];
  return [version(facts), exchange(facts, config), identity(facts, record), lock(facts), unseen(facts, config)].flat();
}

function version({ version: text, cluster, vhost }: BrokerFacts): Finding {
  const said = `RabbitMQ ${text}, cluster ${cluster}, virtual host ${vhost}`;
  const [major = 0, minor = 0] = text.split('.').map(Number);
  const [oldMajor, oldMinor] = OLDEST_VERSION;
  const fits = major > oldMajor || (major === oldMajor && minor >= oldMinor);
  return fits
    ? ok('broker', said)
    : warn('broker', said, 'upgrade to RabbitMQ 3.10 or later; older ones were not tried');
}

function exchange({ exchange: state }: BrokerFacts, { relay }: Config): Finding {
  const id = 'exchange';
  switch (state) {
    case 'fits':
      return ok(id, `exchange ${relay.exchange} is there`);
    case 'differs':
      return warn(
        id,
        `exchange ${relay.exchange} exists, but not as a durable ${relay.exchangeType} exchange`,
        'set relay.exchangeType to its type, or relay.topology: check if it is meant to differ',
      );
    case 'refused':
      return fail(
        id,
        `the broker's user may not use exchange ${relay.exchange}`,
        `give it permission on ${relay.exchange} (rabbitmqctl set_permissions)`,
      );
    case 'missing':
      if (relay.topology === 'assert')
        return ok(id, `exchange ${relay.exchange} is not there yet; the start declares it`);
      return fail(
        id,
        `exchange ${relay.exchange} does not exist, and relay.topology: ${relay.topology} does not declare it`,
        'declare it, or set relay.topology: assert',
      );
  }
}

function identity({ cluster, vhost }: BrokerFacts, record: RelayEntry | undefined): Finding[] {
  if (!record?.brokerCluster) return [];
  const stored = `${record.brokerCluster}, virtual host ${record.brokerVhost ?? '/'}`;
  if (record.brokerCluster === cluster && (record.brokerVhost ?? vhost) === vhost) {
    return [ok('broker-identity', 'it is the broker that the relay worked with')];
  }
  return [
    fail(
      'broker-identity',
      `the relay worked with ${stored}; this is ${cluster}, virtual host ${vhost}`,
      'if it is to publish to this one: waybill relay adopt',
    ),
  ];
}

function lock({ lock: state }: BrokerFacts): Finding[] {
  if (state === 'unknown') return [];
  return [ok('lock', state === 'held' ? 'a relay holds the lock queue' : 'the lock queue is free')];
}

/** What decides over messages and is not told over AMQP: policies win over what a queue was declared with. */
function unseen({ vhost }: BrokerFacts, { consumers }: Config): Finding[] {
  const at = vhost === '/' ? '' : ` -p '${vhost}'`;
  const queues = consumers.length === 0 ? 'queues that your exchanges lead to' : 'queues of your consumers';
  const policies = `policies that apply to ${queues} cannot be seen over AMQP`;
  const wrong =
    'expires, message-ttl and overflow: drop-head lose messages, a small delivery-limit gives up what a crash gave back';
  const how = `rabbitmqctl list_policies${at}; rabbitmqctl list_operator_policies${at}`;
  const limits = 'max_message_size, consumer_timeout and alarms of RabbitMQ cannot be seen over AMQP';
  return [
    note('broker-policies', policies, `${how} (${wrong})`),
    note(
      'broker-limits',
      limits,
      'rabbitmqctl environment; rabbitmqctl status (max_message_size above relay.maxBodyBytes, consumer_timeout 5 min or more)',
    ),
  ];
}

/** Passwords that cannot be kept out of logs and output; looks at the configuration alone. */
export function checkPasswords({ database, broker }: Config): Finding[] {
  const places = [
    ['database.url', database.url],
    ...(database.replicationUrl === database.url
      ? []
      : ([['database.replicationUrl', database.replicationUrl]] as const)),
    ['broker.url', broker.url],
  ] as const;
  return places.flatMap(([key, url]) =>
    passwordsIn(url).some(isOwnWord)
      ? [
          warn(
            'passwords',
            `the password in ${key} is a word that stands everywhere: it is not taken out of logs and output`,
            'give the user a random password',
          ),
        ]
      : [],
  );
}

/** Whether anything travels readable over a network; looks at the configuration alone. */
export function checkEncryption({ database, broker }: Config): Finding[] {
  return [
    encryption('database-encryption', 'PostgreSQL', database.tls.mode, staysLocal(database.url), 'database.tls.mode'),
    encryption('broker-encryption', 'RabbitMQ', broker.tls.mode, staysLocal(broker.url), 'broker.tls.mode'),
  ];
}

function encryption(id: string, peer: string, mode: string, local: boolean, key: string): Finding {
  if (local) return ok(id, `the connection to ${peer} stays on this machine`);
  if (mode === 'verify-full') return ok(id, `the connection to ${peer} is encrypted and its name is verified`);
  if (mode === 'verify-ca') return ok(id, `the connection to ${peer} is encrypted and its authority is verified`);
  const what = mode === 'insecure-plaintext' ? 'is not encrypted' : 'is encrypted, and nobody checks who answers';
  return warn(id, `the connection to ${peer} ${what}`, `set ${key}: verify-full`);
}

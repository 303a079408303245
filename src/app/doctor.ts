import { hostUrls } from '../config/hosts.js';
import type { Config } from '../config/load.js';
import { publicationName, slotName } from '../core/identity.js';
import { isWaybillError } from '../core/errors.js';
import type { Unusable } from '../core/usable-host.js';
import { toDatabaseError } from '../postgres/errors.js';
import { POSTGRES_PORT, type DatabaseEndpoint } from '../postgres/connect.js';
import {
  inspectOldTransactions,
  inspectServer,
  inspectTable,
  readSystemIdentifier,
} from '../postgres/inspect-server.js';
import { readInstallation, readRelays, readSlot, type RelayEntry } from '../postgres/inspect.js';
import { identifySystemBySql, type ReplicationIdentity } from '../postgres/identify.js';
import { identifyPrimary } from '../postgres/primary.js';
import { inspectCommits, inspectRights } from '../postgres/inspect-rights.js';
import { inspectConsumers, inspectHazards, registeredConsumers } from '../postgres/inspect-hazards.js';
import { checkSchema, migrationStatus } from '../postgres/migrations.js';
import { OUTBOX_COLUMNS, STATE_COLUMNS } from '../postgres/outbox-row.js';
import { inspectPublication } from '../postgres/relay-record.js';
import { AMQPS_PORT } from '../rabbitmq/connection.js';
import { checkBroker, checkEncryption, checkPasswords } from './doctor-broker.js';
import { checkCertificates, checkPeerCertificate } from './doctor-certificates.js';
import { fail, ok, warn, type Finding } from './doctor-findings.js';
import { checkConsumers, checkHazards, checkTopology } from './doctor-hazards.js';
import { checkMemory, memoryHere } from './doctor-memory.js';
import { checkSchemaObjects } from './doctor-schema.js';
import { peerCertificateEnd } from './peer-certificate.js';
import { planTopology } from './topology.js';
import { checkCommits, checkRights } from './doctor-rights.js';
import { checkServer, OLD, type OldAges } from './doctor-server.js';
import { replicationEndpoints } from './endpoints.js';
import { assertOneServer } from './one-server.js';
import { withDatabase, type SqlClient } from './session.js';
import { askBroker } from './status.js';

const LIMITS = { lockTimeoutMs: 1_000, statementTimeoutMs: 10_000, workTimeoutMs: 20_000 };

/** What the database side tells the broker's checks. */
interface Remembered {
  server: DatabaseEndpoint | undefined;
  identity: ReplicationIdentity | undefined;
  installation: string | undefined;
  record: RelayEntry | undefined;
}

/** Looks at everything that can be seen beforehand; changes nothing. What cannot be reached is a finding, not an error. */
export async function examine(config: Config, old: OldAges = OLD): Promise<Finding[]> {
  const findings: Finding[] = [];
  const remembered: Remembered = { server: undefined, identity: undefined, installation: undefined, record: undefined };
  await gather(findings, 'database', async () => {
    const examined = (client: SqlClient, server: DatabaseEndpoint): Promise<void> => {
      remembered.server = server;
      return examineDatabase(client, { config, old }, findings, remembered);
    };
    await withDatabase(config.database, LIMITS, examined, (host) => findings.push(passedOver('database-hosts', host)));
  });
  if (config.relay.enabled && config.relay.source === 'wal') {
    await gather(findings, 'replication-connection', async () => {
      const servers = replicationEndpoints(config.database, remembered.server);
      const { identity } = await identifyPrimary(servers, 'waybill inspection');
      if (remembered.identity) assertOneServer(remembered.identity, identity);
      findings.push(ok('replication-connection', 'a replication connection can be opened'));
    });
  }
  await gather(findings, 'broker', async () => {
    const facts = await askBroker(config, remembered.installation, (host) =>
      findings.push(passedOver('broker-hosts', host)),
    );
    findings.push(...checkBroker(facts, remembered.record, config));
    if (config.consumers.length > 0) findings.push(...checkTopology((await planTopology(config)).steps, config));
  });
  findings.push(...checkEncryption(config), ...checkPasswords(config), ...checkCertificates(config, new Date()));
  findings.push(...(await examinePeers(config)), checkMemory(config, memoryHere()));
  return findings;
}

/** F85: the certificates that the servers show, which end without anybody here having a file of them. */
async function examinePeers({ database, broker }: Config): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const [what, mode, urls, port] of [
    ['PostgreSQL', database.tls.mode, database.url, POSTGRES_PORT],
    ['RabbitMQ', broker.tls.mode, broker.url, AMQPS_PORT],
  ] as const) {
    if (mode === 'insecure-plaintext') continue;
    for (const url of hostUrls(urls)) {
      const end = await peerCertificateEnd(url, port);
      if (end) findings.push(checkPeerCertificate(what, end, new Date()));
    }
  }
  return findings;
}

/** A standby among the hosts is as it should be; a host that cannot be reached is missed when it is needed. */
function passedOver(id: string, { host, error }: Unusable): Finding {
  if (error.code === 'WAYBILL_DATABASE_UNSUITABLE') return ok(id, `${host} is passed over: ${error.message}`);
  return warn(id, `${host} cannot be used: ${error.message}`, error.hint ?? 'see the message');
}

/** Runs one part; its failure becomes a finding with the hint as the mend. */
async function gather(findings: Finding[], id: string, part: () => Promise<void>): Promise<void> {
  try {
    await part();
  } catch (error) {
    const known = isWaybillError(error) || id === 'broker' ? error : toDatabaseError(error, 'looking at the database');
    if (!isWaybillError(known)) throw error;
    const answered = findings.some((finding) => finding.id === id && finding.severity === 'ok');
    const about = known.code.startsWith('WAYBILL_SCHEMA_') ? 'schema' : answered ? 'grants' : id;
    findings.push(fail(about, known.message, known.hint ?? 'see the message'));
  }
}

async function examineDatabase(
  client: SqlClient,
  { config, old }: { config: Config; old: OldAges },
  findings: Finding[],
  remembered: Remembered,
): Promise<void> {
  const { schema } = config.database;
  const asked = Date.now();
  const server = await inspectServer(client);
  const clockDifferenceMs = (asked + Date.now()) / 2 - server.clock.getTime();
  findings.push(ok('database', `database ${server.database} answers`));
  remembered.identity = { ...(await identifySystemBySql(client)), database: server.database };
  // Why: a role that may not read our tables still learns everything about the server.
  const { schemaVersion, relays, refused } = await readOwnTables(client, schema);
  remembered.record = relays.find(({ name }) => name === config.relay.name);
  const name = remembered.record?.slot ?? slotName(server.database, schema, config.relay.name);
  const slot = await readSlot(client, name);
  const ownSlots = [name, ...relays.flatMap((relay) => relay.slot ?? [])];
  findings.push(...checkHazards(await inspectHazards(client, schema, ownSlots), config));
  const transactions = await inspectOldTransactions(client, old.transactionMs);
  const insertThenDeleteSeen = remembered.record?.insertThenDeleteSeen ?? false;
  const evidence = { server, transactions, slotName: name, slot, insertThenDeleteSeen, clockDifferenceMs, ages: old };
  findings.push(...checkServer(evidence, config));
  findings.push(checkRights(await inspectRights(client, schema), schema));
  findings.push(...checkCommits(await inspectCommits(client, schema), server.synchronousStandbyNames !== ''));
  if (refused !== undefined) throw toDatabaseError(refused, `reading schema ${schema}`);
  await checkSchema(client, { schema });
  remembered.installation = await readInstallation(client, schema);
  const ownColumns = [...OUTBOX_COLUMNS, ...STATE_COLUMNS];
  findings.push(
    ...checkSchemaObjects(
      {
        schemaVersion,
        publication: await inspectPublication(client, schema, publicationName(schema)),
        table: await inspectTable(client, schema, ownColumns),
        relays,
        systemIdentifier: await readSystemIdentifier(client),
      },
      config,
    ),
  );
  const named = config.consumers.map(({ name, handler }) => ({
    name,
    function: handler.kind === 'sql' ? handler.function : null,
  }));
  const inspected = await inspectConsumers(client, schema, named);
  findings.push(...checkConsumers(inspected, await registeredConsumers(client, schema), config));
}

async function readOwnTables(client: SqlClient, schema: string) {
  try {
    const { version: schemaVersion } = await migrationStatus(client, { schema });
    const relays = schemaVersion > 0 ? await readRelays(client, schema) : [];
    return { schemaVersion, relays, refused: undefined };
  } catch (refused: unknown) {
    return { schemaVersion: 0, relays: [] as RelayEntry[], refused };
  }
}

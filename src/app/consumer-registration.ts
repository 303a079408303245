import type { ConsumerConfig } from '../config/consumers.js';
import type { Config } from '../config/load.js';
import { quoteIdentifier } from '../core/identity.js';
import { toInboxError } from '../postgres/inbox-errors.js';
import { readInstallation } from '../postgres/inspect.js';
import { checkSchema } from '../postgres/migrations.js';
import { withDatabase } from './session.js';

const LIMITS = { lockTimeoutMs: 5_000, statementTimeoutMs: 10_000, workTimeoutMs: 40_000 };
/** Where the order of a consumer was changed, all its messages that wait change with it: 400,000 take 20 s. */
const PATIENT_LIMITS = { lockTimeoutMs: 5_000, statementTimeoutMs: 1_800_000, workTimeoutMs: 1_810_000 };

/**
 * Writes the configured consumers into the schema, where their schedules and retention are read from (F128). Gives the
 * uuid of the installation. `isPatient`: it took too long before, and may take half an hour.
 */
export async function registerConsumers(config: Config, { isPatient }: { isPatient: boolean }): Promise<string> {
  const { schema } = config.database;
  return withDatabase(config.database, isPatient ? PATIENT_LIMITS : LIMITS, async (client) => {
    await checkSchema(client, { schema });
    try {
      await client.query(`select ${quoteIdentifier(schema)}.register_consumers($1::json)`, [
        JSON.stringify(config.consumers.map(toRegistration)),
      ]);
      // What a breaker noted is a former process's word; one that runs says it again.
      await client.query(`select ${quoteIdentifier(schema)}.consumer_mend(c) from unnest($1::text[]) as c`, [
        config.consumers.map(({ name }) => name),
      ]);
      return (await readInstallation(client, schema)) ?? '';
    } catch (error) {
      throw toInboxError(error, 'registering the consumers');
    }
  });
}

function toRegistration(consumer: ConsumerConfig): unknown {
  const { handler, retry, retention } = consumer;
  const ms = (value: number): string => `${value} ms`;
  return {
    name: consumer.name,
    owner: consumer.owner ?? undefined,
    queue: consumer.queue,
    identify: consumer.identify,
    handler: handler.kind,
    function: handler.kind === 'sql' ? handler.function : undefined,
    order: consumer.order,
    on_dead: consumer.onDead,
    retry_delays: retry.delaysMs.map(ms),
    max_attempts: retry.maxAttempts,
    max_age: ms(retry.maxAgeMs),
    not_yet_for: ms(retry.notYetForMs),
    retain_ids: ms(retention.idsMs),
    retain_bodies: ms(retention.bodiesMs),
    retain_dead: ms(retention.deadMs),
    accept: consumer.accept.map(({ type, fromVersion, toVersion }) =>
      fromVersion === 0 ? type : `${type}@${fromVersion}-${toVersion === Infinity ? '' : toVersion}`,
    ),
  };
}

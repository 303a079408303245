import { z } from 'zod';
import { parseAcceptance, type Acceptance } from '../core/acceptance.js';
import { parseIdentification } from '../core/identification.js';
import { brokerDeathsQueue, isSharedDelay, retryQueue } from '../core/topology.js';
import { checkHttpHandler, httpHandlerKeys, toHttpHandler, type HttpHandlerConfig } from './http-handler.js';
import { choice, duration, integer, list, size, text } from './leaves.js';
import { checkExchangeName } from './names.js';
import type { ConfigProblem } from './problems.js';
import { parseDuration, type Parsed } from './quantities.js';

/** Where a consumer's queue is bound. */
export interface BindingConfig {
  exchange: string;
  routingKey: string;
}

const retry = z
  .strictObject({
    delays: list(checkDelay, {
      values: '["1s", "5s", "30s"]',
      fallback: ['1s', '5s', '30s', '2m', '10m', '1h'],
      doc: 'How long a message that failed waits before it is tried again; the last holds for all further times. Chance adds up to as much again.',
    }),
    maxAttempts: integer(8, 1, 1_000, 'After so many failed attempts a message is dead.'),
    maxAge: duration(
      '3d',
      { min: '1m', max: '365d' },
      'A message that fails when it was received (or retried by an operator) longer ago than this is dead; time in which its consumer was paused counts.',
    ),
    notYetFor: duration(
      '24h',
      { min: '1s', max: '365d' },
      'How long after it was received (or retried by an operator) a message may wait for data that is not there yet (verdict not-yet); such waiting spends no attempts. Time in which its consumer was paused counts.',
    ),
  })
  .prefault({});

const retention = z
  .strictObject({
    ids: duration(
      '14d',
      { min: '1h', max: '3650d' },
      'How long after its end a message is remembered: copies that come later count as new. Longer than producers keep theirs.',
    ),
    bodies: duration(
      '1d',
      { min: '0s', max: '3650d' },
      'How long the body of an applied message is kept; `0s` keeps none.',
    ),
    dead: duration('30d', { min: '1h', max: '3650d' }, 'How long a dead message is kept.'),
  })
  .prefault({});

const batch = z
  .strictObject({
    rows: integer(200, 1, 5_000, 'Most messages that are written by one statement.'),
    bytes: size('8MiB', { min: '64KiB', max: '256MiB' }, 'Most bytes of bodies that are written by one statement.'),
    wait: duration('10ms', { min: '0ms', max: '5s' }, 'How long a message waits for others to be written with.'),
  })
  .prefault({});

const kind = choice(
  ['store', 'sql', 'http'],
  'store',
  'store: applications claim the rows themselves. sql: a function is called in the transaction that takes the message in. http: each message is posted to an application.',
);
const timeout = duration(
  '10s',
  { min: '100ms', max: '10m' },
  'For `sql`: how long one statement with up to 60 calls may take; then its messages are handled one by one. For `http`: how long one attempt may take, from connecting to the end of the answer.',
);
const sqlHandlerKeys = {
  function: text('', checkFunctionName, {
    kind: 'name',
    values: 'schema.function',
    doc: 'For `sql`, and required there: the function that takes one `waybill.inbox_message`.',
  }),
};

const handlers = {
  store: z.strictObject({ kind }),
  sql: z.strictObject({ kind, timeout, ...sqlHandlerKeys }),
  http: z.strictObject({ kind, ...httpHandlerKeys, timeout }),
} as const;

function consumerOf<H extends z.ZodObject>(handler: H) {
  return z.strictObject({
    owner: text('', checkOwner, {
      kind: 'text',
      values: 'text',
      doc: 'Who is asked when this consumer has a problem.',
    }),
    queue: text('', checkQueueName, {
      kind: 'name',
      values: '1 to 255 bytes',
      doc: "The queue that is consumed; without it, the consumer's name.",
    }),
    queueType: choice(
      ['quorum', 'classic'],
      'quorum',
      'Its type, used when Waybill declares it. `classic` only where a broker has no quorum queues.',
    ),
    topology: choice(
      ['assert', 'check', 'none'],
      'assert',
      'At start: declare its queues, exchanges and bindings; only look that the queues and exchanges are there, and consume nothing until they are; or neither.',
    ),
    bindings: list(checkBinding, {
      values: '[{exchange: "events", routingKey: "order.*"}]',
      doc: 'What the queue is bound to. Bindings are added, never removed.',
    }),
    accept: list(checkAcceptance, {
      values: '["order.paid@1-2", "order.sent"]',
      doc: 'Types, with versions, that the consumer understands; without it, all. Anything else is kept as dead.',
    }),
    identify: text('message-id', checkIdentify, {
      kind: 'text',
      values: 'message-id, cloudevents, hash, header:<name>, or a text with {type}, {header:<name>} and the like',
      doc: 'Where the id is found under which a message counts once.',
    }),
    idNamespace: choice(
      ['none', 'app-id', 'exchange'],
      'none',
      'Tells ids of several producers apart, where they are not unique by themselves.',
    ),
    handler: handler.prefault({} as never),
    order: choice(
      ['none', 'key'],
      'none',
      'key: messages of one key in their order, followers wait behind any that is unresolved; the queue has one active consumer. With another `topology` than assert that is yours to see to, because RabbitMQ does not tell it: `x-single-active-consumer`.',
    ),
    onDead: choice(
      ['block', 'skip'],
      'block',
      'With `order: key`: whether a dead message holds its key until somebody acts, or is passed over.',
    ),
    prefetch: integer(400, 1, 10_000, 'Most messages that the broker hands out unacknowledged.'),
    maxBodyBytes: size(
      '15MiB',
      { min: '1KiB', max: '128MiB' },
      'A message with a larger body is kept as malformed, body and all.',
    ),
    batch,
    retry,
    retention,
    deadLetterQueue: text('', checkQueueName, {
      kind: 'name',
      values: '1 to 255 bytes',
      doc: 'A queue, declared and bounded, that gets a copy of each dead message; without it, bind your own to `waybill.dlx`.',
    }),
    delay: choice(
      ['ttl-queues', 'x-delayed-message'],
      'ttl-queues',
      'What brings timers of retries back: a queue for each delay, or the delayed-message plugin of the broker, which must be enabled on every node.',
    ),
  });
}

const consumers = {
  store: consumerOf(handlers.store),
  sql: consumerOf(handlers.sql),
  http: consumerOf(handlers.http),
} as const;
type Kind = keyof typeof consumers;
type Given<K extends Kind> = z.output<(typeof consumers)[K]>;

/** Every key that a consumer can have, for the reference: those of all handlers together. */
export const consumerKeys = consumerOf(z.strictObject({ kind, ...sqlHandlerKeys, ...httpHandlerKeys, timeout }));

const NAME = /^[a-z][a-z0-9_-]{0,39}$/;

/** The section `consumers`: a map from names to what each consumer is. Which keys a handler has depends on its kind. */
export const consumersSection = z
  .unknown()
  .optional()
  .transform((raw, context): ConsumerConfig[] => {
    if (raw === undefined || raw === null) return [];
    const fail = (path: string[], message: string, mend: string): void => {
      context.issues.push({ code: 'custom', input: undefined, path, message, params: { mend } });
    };
    if (typeof raw !== 'object' || Array.isArray(raw)) {
      fail([], 'is not a map of names', 'write each consumer as a section beneath it');
      return [];
    }
    const found: ConsumerConfig[] = [];
    for (const [name, given] of Object.entries(raw)) {
      if (!NAME.test(name)) {
        fail([name], 'is not a usable consumer name', 'use a-z, 0-9, _ and -, beginning with a letter, at most 40');
        continue;
      }
      const parsed = consumers[kindOf(given)].safeParse(given ?? {});
      if (!parsed.success) {
        for (const issue of parsed.error.issues) {
          context.issues.push({ ...issue, input: undefined, path: [name, ...issue.path] });
        }
        continue;
      }
      const consumer = toConsumer(name, parsed.data);
      for (const { at, problem, mend } of contradictions(consumer)) fail([name, ...at.split('.')], problem, mend);
      if (isHttp(parsed.data.handler)) {
        const prefix = `consumers.${name}.`;
        for (const { at, problem, mend } of checkHttpHandler(parsed.data.handler, `${prefix}handler`)) {
          fail([name, ...at.slice(prefix.length).split('.')], problem, mend);
        }
      }
      found.push(consumer);
    }
    for (const [one, other] of sharedQueues(found)) {
      fail([other, 'queue'], `is also the queue of ${one}`, 'give each consumer a queue of its own');
    }
    for (const { path, problem, mend } of takenQueues(found)) fail(path, problem, mend);
    return found;
  });

/** The kind that decides which keys the handler has; a wrong one is told by the schema. */
function kindOf(given: unknown): Kind {
  const handler = (given as { handler?: { kind?: unknown } } | null)?.handler;
  return handler?.kind === 'sql' || handler?.kind === 'http' ? handler.kind : 'store';
}

/** One consumer, checked: durations end in Ms, sizes in Bytes. */
export type ConsumerConfig = ReturnType<typeof toConsumer>;

type HandlerConfig = { kind: 'store' } | { kind: 'sql'; function: string; timeoutMs: number } | HttpHandlerConfig;

type GivenHandler = Given<Kind>['handler'];

function toConsumer(name: string, given: Given<Kind>) {
  const { owner, queue, identify, deadLetterQueue, batch: gather, retry: again, retention: kept, ...rest } = given;
  const identification = parseIdentification(identify);
  if (!identification) throw new TypeError('identify was checked');
  return {
    name,
    owner: owner === '' ? null : owner,
    queue: queue === '' ? name : queue,
    queueType: rest.queueType,
    topology: rest.topology,
    bindings: rest.bindings,
    accept: rest.accept,
    identify,
    identification,
    idNamespace: rest.idNamespace,
    handler: toHandler(rest.handler),
    order: rest.order,
    onDead: rest.onDead,
    prefetch: rest.prefetch,
    maxBodyBytes: rest.maxBodyBytes,
    batch: { rows: gather.rows, bytes: gather.bytes, waitMs: gather.wait },
    retry: {
      delaysMs: again.delays,
      maxAttempts: again.maxAttempts,
      maxAgeMs: again.maxAge,
      notYetForMs: again.notYetFor,
    },
    retention: { idsMs: kept.ids, bodiesMs: kept.bodies, deadMs: kept.dead },
    deadLetterQueue: deadLetterQueue === '' ? null : deadLetterQueue,
    delay: rest.delay,
  };
}

function toHandler(given: GivenHandler): HandlerConfig {
  if (isHttp(given)) return toHttpHandler(given);
  return 'function' in given ? { kind: 'sql', function: given.function, timeoutMs: given.timeout } : { kind: 'store' };
}

function isHttp(given: GivenHandler): given is Given<'http'>['handler'] {
  return 'url' in given;
}

function contradictions({
  handler,
  retry: again,
  retention: kept,
  deadLetterQueue,
  queue,
}: ConsumerConfig): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  if (handler.kind === 'sql' && handler.function === '') {
    problems.push({
      at: 'handler.function',
      problem: 'is missing',
      mend: 'name the function, such as billing.on_event',
    });
  }
  if (again.delaysMs.length === 0) {
    problems.push({ at: 'retry.delays', problem: 'is empty', mend: 'give at least one delay' });
  }
  if (kept.idsMs <= Math.max(again.maxAgeMs, again.notYetForMs)) {
    problems.push({
      at: 'retention.ids',
      problem: 'is not longer than a message may be retried, so that a copy could be applied again',
      mend: 'raise it, or lower retry.maxAge and retry.notYetFor',
    });
  }
  if (deadLetterQueue === queue) {
    problems.push({ at: 'deadLetterQueue', problem: 'is the queue itself', mend: 'give it a name of its own' });
  }
  return problems;
}

function sharedQueues(found: readonly ConsumerConfig[]): [string, string][] {
  return found.flatMap(({ name, queue }, index) =>
    found.slice(0, index).flatMap((other): [string, string][] => (other.queue === queue ? [[other.name, name]] : [])),
  );
}

/** Names of queues that Waybill makes for itself: what else came there would come round again, or be taken for a timer. */
function takenQueues(found: readonly ConsumerConfig[]): { path: string[]; problem: string; mend: string }[] {
  const uses = new Map<string, string>();
  for (const { name, queue } of found) {
    uses.set(brokerDeathsQueue(queue), `gets what RabbitMQ gives up in ${queue}`);
    uses.set(retryQueue(name), `gets the timers of ${name}`);
  }
  return found.flatMap(({ name, queue, deadLetterQueue }) =>
    Object.entries({ queue, deadLetterQueue }).flatMap(([key, given]) => {
      const use = given === null ? undefined : isSharedDelay(given) ? 'holds timers' : uses.get(given);
      if (use === undefined) return [];
      const problem = `is the queue that ${use}`;
      return [{ path: [name, key], problem, mend: 'give it a name of its own' }];
    }),
  );
}

function checkQueueName(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && raw !== '' && Buffer.byteLength(raw) <= 250 && !raw.startsWith('amq.')) {
    return { value: raw };
  }
  return { problem: 'is not a queue name', mend: 'give a name of 1 to 250 bytes that does not begin with amq.' };
}

function checkOwner(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && raw.length <= 200) return { value: raw };
  return { problem: 'is not a text', mend: 'name a team or a person' };
}

function checkFunctionName(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && /^[a-z_][a-z0-9_$]{0,62}\.[a-z_][a-z0-9_$]{0,62}$/.test(raw)) return { value: raw };
  return { problem: 'is not a function with its schema', mend: 'write it like billing.on_event' };
}

function checkIdentify(raw: unknown): Parsed<string> {
  if (typeof raw === 'string' && parseIdentification(raw)) return { value: raw };
  return {
    problem: 'is no way to find an id',
    mend: 'write message-id, cloudevents, hash, header:<name>, or a text such as "{type}:{header:order-no}"',
  };
}

function checkAcceptance(raw: unknown): Parsed<Acceptance> {
  const value = typeof raw === 'string' ? parseAcceptance(raw) : undefined;
  if (value) return { value };
  return {
    problem: 'has an entry that is no type',
    mend: 'write types like order.paid, order.paid@2 or order.paid@1-2',
  };
}

function checkDelay(raw: unknown): Parsed<number> {
  const parsed = parseDuration(raw);
  if ('value' in parsed && (parsed.value < 100 || parsed.value > 7 * 86_400_000)) {
    return { problem: 'has a delay that is out of bounds', mend: 'from 100ms to 7d' };
  }
  return parsed;
}

function checkBinding(raw: unknown): Parsed<BindingConfig> {
  const mend = 'write each like {exchange: events, routingKey: "order.*"}';
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw))
    return { problem: 'has an entry that is no binding', mend };
  const { exchange, routingKey = '#', ...rest } = raw as Record<string, unknown>;
  if (Object.keys(rest).length > 0) return { problem: 'has a binding with an unknown key', mend };
  const name = checkExchangeName(exchange);
  if (!('value' in name)) return { problem: 'has a binding without an exchange', mend };
  if (typeof routingKey !== 'string' || Buffer.byteLength(routingKey) > 255) {
    return { problem: 'has a binding with a routing key that is none', mend };
  }
  return { value: { exchange: name.value, routingKey } };
}

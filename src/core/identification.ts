import { createHash } from 'node:crypto';

/** Where a consumer finds the id under which a message counts once. */
export type Identification =
  | { kind: 'message-id' }
  /** Source and id of a CloudEvent, in binary mode (headers) or structured mode (body). */
  | { kind: 'cloudevents' }
  | { kind: 'header'; name: string }
  /** Text with placeholders: see PLACEHOLDERS. */
  | { kind: 'template'; text: string }
  /** The SHA-256 of exchange, routing key and body: for producers that give no id. */
  | { kind: 'hash' };

/** What may tell one producer's ids from another's. */
export type IdNamespace = 'none' | 'app-id' | 'exchange';

/** What of a delivery an id can be made of. */
export interface Identifiable {
  messageId: string | null;
  type: string | null;
  appId: string | null;
  correlationId: string | null;
  exchange: string;
  routingKey: string;
  contentType: string | null;
  headers: Readonly<Record<string, unknown>>;
  body: Buffer;
}

const PLACEHOLDERS: Readonly<Record<string, (given: Identifiable) => unknown>> = {
  message_id: (given) => given.messageId,
  type: (given) => given.type,
  app_id: (given) => given.appId,
  correlation_id: (given) => given.correlationId,
  exchange: (given) => given.exchange,
  routing_key: (given) => given.routingKey,
};

/** Longer ones are replaced by their hash: a unique index takes no more. Bytes. */
const MAX_ID_BYTES = 512;

/** Reads `message-id`, `cloudevents`, `hash`, `header:<name>` or a template with {placeholders}; undefined otherwise. */
export function parseIdentification(text: string): Identification | undefined {
  if (text === 'message-id' || text === 'cloudevents' || text === 'hash') return { kind: text };
  const header = /^header:(.{1,255})$/.exec(text)?.[1];
  if (header !== undefined) return { kind: 'header', name: header };
  const names = [...text.matchAll(/\{([^{}]*)\}/g)].map(([, name = '']) => name);
  const isKnown = (name: string): boolean => Object.hasOwn(PLACEHOLDERS, name) || /^header:.{1,255}$/.test(name);
  if (names.length === 0 || !names.every(isKnown)) return undefined;
  if (/[{}]/.test(text.replaceAll(/\{[^{}]*\}/g, ''))) return undefined;
  return { kind: 'template', text };
}

/** The id of a message, or undefined when the part that it is made of is not there. */
export function identify(how: Identification, namespace: IdNamespace, given: Identifiable): string | undefined {
  const plain = plainId(how, given);
  if (plain === undefined) return undefined;
  const owner = namespace === 'none' ? '' : namespace === 'app-id' ? given.appId : given.exchange;
  if (owner === null) return undefined;
  const id = namespace === 'none' ? plain : `${owner}/${plain}`;
  return Buffer.byteLength(id) > MAX_ID_BYTES ? `sha256:${sha256(id)}` : id;
}

function plainId(how: Identification, given: Identifiable): string | undefined {
  switch (how.kind) {
    case 'message-id':
      return text(given.messageId);
    case 'header':
      return text(headerOf(given, how.name));
    case 'cloudevents':
      return cloudEventId(given);
    case 'hash':
      return `sha256:${sha256(lengths(given.exchange, given.routingKey), given.body)}`;
    case 'template': {
      const missing: string[] = [];
      const id = how.text.replaceAll(/\{([^{}]*)\}/g, (_, name: string) => {
        const value = text(name.startsWith('header:') ? headerOf(given, name.slice(7)) : PLACEHOLDERS[name]?.(given));
        if (value === undefined) missing.push(name);
        return value ?? '';
      });
      return missing.length === 0 ? id : undefined;
    }
  }
}

/** Binary mode has headers under one of the prefixes in use; structured mode has all of it in the body. */
function cloudEventId(given: Identifiable): string | undefined {
  for (const prefix of ['cloudEvents:', 'cloudEvents_', 'ce-', 'ce_']) {
    const [source, id] = [text(headerOf(given, `${prefix}source`)), text(headerOf(given, `${prefix}id`))];
    // Why a space: a source is a URI reference, which holds none.
    if (source !== undefined && id !== undefined) return `${source} ${id}`;
  }
  if (!given.contentType?.startsWith('application/cloudevents+json')) return undefined;
  try {
    const { source, id } = JSON.parse(given.body.toString('utf8')) as Record<string, unknown>;
    const [sourceText, idText] = [text(source), text(id)];
    return sourceText !== undefined && idText !== undefined ? `${sourceText} ${idText}` : undefined;
  } catch {
    return undefined;
  }
}

function headerOf(given: Identifiable, name: string): unknown {
  return Object.hasOwn(given.headers, name) ? given.headers[name] : undefined;
}

/** Scalars as text; empty texts and everything else identify nothing. */
function text(value: unknown): string | undefined {
  if (typeof value === 'string') return value === '' ? undefined : value;
  return typeof value === 'number' || typeof value === 'bigint' ? String(value) : undefined;
}

/** Texts that cannot be read two ways when they stand one after the other. */
function lengths(...texts: string[]): string {
  return texts.map((each) => `${Buffer.byteLength(each)}:${each}`).join('');
}

function sha256(...parts: (string | Buffer)[]): string {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest('hex');
}

/** What stands where a secret stood. */
export const REDACTED = '[redacted]';

/** Shorter secrets are not searched for by value: taking out every "a" would leave nothing to read. */
export const SHORTEST_SECRET = 4;

/**
 * Words of which our own texts are made, and users, databases and hosts of half the world. Taken out of everything that is
 * shown, nothing would be left to read, and what is shown would tell the password all the same.
 */
const OWN_WORDS = new Set(
  (
    'waybill relay outbox inbox consumer consumers message messages event events queue exchange database broker schema ' +
    'table slot publication default public true false null error warn info debug code level time name status state key ' +
    'password passwd secret test admin root user guest local localhost postgres postgresql rabbit rabbitmq amqp'
  ).split(' '),
);

/** Whether a secret is no secret: it is not taken out of what is shown, and doctor says so. */
export function isOwnWord(secret: string): boolean {
  return OWN_WORDS.has(secret.toLowerCase());
}

/** The word "password" stands in our own examples. */
const PASSWORD_IN_URL = /([a-z][a-z0-9+.-]*:\/\/[^\s:@/?#"]*:)(?!password@)[^\s@/"]+@/gi;

/** Such as of a file that was named in the wrong place; cut off, it is still one. */
const PRIVATE_KEY = /-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)/g;

/** Of Standard Webhooks. */
const WEBHOOK_SECRET = /whsec_[A-Za-z0-9+/=_-]{8,}/g;

/** More than a configuration holds, with room for the newest passwords of commands. */
const MOST_SECRETS = 100;

/** Texts that must not be written. New ones may be learned at any time; the oldest is forgotten past a hundred. */
export class Secrets {
  readonly #known = new Set<string>();
  #longestFirst: readonly string[] = [];

  constructor(known: Iterable<string> = []) {
    this.add(known);
  }

  /** What was known before stays known, because a late error may still hold it. */
  add(found: Iterable<string>): void {
    for (const secret of found) {
      if (secret.length < SHORTEST_SECRET || isOwnWord(secret)) continue;
      this.#known.delete(secret);
      this.#known.add(secret);
    }
    for (const oldest of this.#known) {
      if (this.#known.size <= MOST_SECRETS) break;
      this.#known.delete(oldest);
    }
    // Why longest first: one secret may be a part of another, and its rest would stay.
    this.#longestFirst = [...this.#known].sort((a, b) => b.length - a.length);
  }

  /** The text with every known secret taken out. */
  takenOutOf(text: string): string {
    return this.#longestFirst.reduce((rest, secret) => rest.replaceAll(secret, REDACTED), text);
  }
}

/**
 * What this process has learned. One for all of it, because a secret must be taken out wherever it turns up, whoever
 * learned it: the configuration, a file that was read again, a password command.
 */
export const knownSecrets = new Secrets();

/** Takes secrets out of one line of JSON, wherever they stand in its names and values; the line stays valid JSON. */
export type Redact = (line: string) => string;

/** Also what is one by its look, known or not: passwords inside of any URL, private keys, webhook secrets. */
function cleaner(secrets: Secrets): (text: string) => string {
  return (text) =>
    secrets
      .takenOutOf(text)
      .replaceAll(PASSWORD_IN_URL, `$1${REDACTED}@`)
      .replaceAll(PRIVATE_KEY, REDACTED)
      .replaceAll(WEBHOOK_SECRET, REDACTED);
}

/**
 * A redactor for these secrets and those learned later. A secret is taken out by its value, so it does not matter by
 * which way it came into a line: a message, a field, the text of a foreign error, a URL.
 */
export function createRedactor(secrets: Secrets = knownSecrets): Redact {
  const clean = cleaner(secrets);
  return (line) => {
    const end = line.endsWith('\n') ? '\n' : '';
    let parsed: unknown;
    try {
      parsed = JSON.parse(line);
    } catch {
      return clean(line.slice(0, line.length - end.length)) + end;
    }
    return JSON.stringify(cleanDeeply(parsed, clean)) + end;
  };
}

/** Takes secrets out of a plain text, such as the message of an error on its way to a terminal. */
export function createTextRedactor(secrets: Secrets = knownSecrets): (text: string) => string {
  const redact = createRedactor(secrets);
  return (text) => JSON.parse(redact(JSON.stringify(text))) as string;
}

/**
 * Writes a value as JSON without secrets. Why not a text redactor over JSON: there a secret with a quote or a backslash is
 * written in another way.
 */
export function createJsonRedactor(secrets: Secrets = knownSecrets): (value: object, indent?: number) => string {
  const clean = cleaner(secrets);
  return (value, indent) => JSON.stringify(cleanDeeply(JSON.parse(JSON.stringify(value)), clean), null, indent);
}

function cleanDeeply(value: unknown, clean: (text: string) => string): unknown {
  if (typeof value === 'string') return clean(value);
  if (typeof value === 'number') {
    const text = String(value);
    return clean(text) === text ? value : REDACTED;
  }
  if (Array.isArray(value)) return value.map((item) => cleanDeeply(item, clean));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [clean(name), cleanDeeply(item, clean)]));
}

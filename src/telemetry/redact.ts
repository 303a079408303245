/** What stands where a secret stood. */
export const REDACTED = '[redacted]';

/** Shorter secrets are not searched for by value: taking out every "a" would leave nothing to read. */
export const SHORTEST_SECRET = 4;

/** The word "password" stands in our own examples. */
const PASSWORD_IN_URL = /([a-z][a-z0-9+.-]*:\/\/[^\s:@/?#"]*:)(?!password@)[^\s@/"]+@/gi;

/** Takes secrets out of one line of JSON, wherever they stand in its names and values; the line stays valid JSON. */
export type Redact = (line: string) => string;

/**
 * A redactor for these secrets. A secret is taken out by its value, so it does not matter by which way it came into a
 * line: a message, a field, the text of a foreign error, a URL. Passwords inside of any URL go as well.
 */
export function createRedactor(secrets: readonly string[]): Redact {
  // Why longest first: one secret may be a part of another, and its rest would stay.
  const known = [...new Set(secrets)]
    .filter((secret) => secret.length >= SHORTEST_SECRET)
    .sort((a, b) => b.length - a.length);
  const clean = (text: string) =>
    known
      .reduce((rest, secret) => rest.replaceAll(secret, REDACTED), text)
      .replaceAll(PASSWORD_IN_URL, `$1${REDACTED}@`);
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
export function createTextRedactor(secrets: readonly string[]): (text: string) => string {
  const redact = createRedactor(secrets);
  return (text) => JSON.parse(redact(JSON.stringify(text))) as string;
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

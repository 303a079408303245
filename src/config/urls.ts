import { hostUrls } from './hosts.js';
import type { Parsed } from './quantities.js';

const ENCODE_MEND = 'percent-encode special characters of the password (@ is %40, # is %23, / is %2F, ? is %3F)';

const TARGETS = new Set(['read-write', 'primary']);

/** Checks a PostgreSQL URL; encryption is never taken from it, because sslmode words change their meaning. */
export function checkDatabaseUrl(raw: unknown): Parsed<string> {
  const example = 'postgres://user:password@host:5432/database';
  const parsed = parseUrls(raw, ['postgres:', 'postgresql:'], example);
  if (!('value' in parsed)) return parsed;
  const { searchParams } = parsed.value;
  for (const name of searchParams.keys()) {
    if (name === 'ssl' || name.startsWith('ssl') || name === 'uselibpqcompat') {
      return { problem: `carries the parameter "${name}"`, mend: 'take it out and set database.tls.mode instead' };
    }
  }
  if (searchParams.get('host')?.includes(',')) {
    return {
      problem: 'lists hosts in a parameter',
      mend: 'write them like postgres://user:password@h1:5432,h2:5432/database',
    };
  }
  const target = searchParams.get('target_session_attrs');
  if (target !== null && !TARGETS.has(target)) {
    return {
      problem: 'carries target_session_attrs',
      mend: 'take it out; the host that takes writes is always chosen',
    };
  }
  if (databaseName(parsed.value) === '') return { problem: 'names no database', mend: `write it like ${example}` };
  return { value: raw as string };
}

/** Checks a RabbitMQ URL; heartbeat and the rest have keys of their own, so it takes no parameters. */
export function checkBrokerUrl(raw: unknown): Parsed<string> {
  const parsed = parseUrls(raw, ['amqp:', 'amqps:'], 'amqps://user:password@host:5671/vhost');
  if (!('value' in parsed)) return parsed;
  const [parameter] = parsed.value.searchParams.keys();
  if (parameter !== undefined) {
    const mend = parameter === 'heartbeat' ? 'take it out and set broker.heartbeat' : 'take the part after ? out';
    return { problem: `carries the parameter "${safeName(parameter)}"`, mend };
  }
  if (parsed.value.pathname.slice(1).includes('/')) {
    return { problem: 'has a / inside the virtual host', mend: 'write the virtual host "/" as %2F, or leave it out' };
  }
  return { value: raw as string };
}

/** Every form in which the password of a URL may turn up in a text: as written and decoded. */
export function passwordsIn(urlText: string): string[] {
  const [first] = hostUrls(urlText);
  if (!URL.canParse(first)) return [];
  const parsed = new URL(first);
  const written = [parsed.password, parsed.searchParams.get('password') ?? ''];
  const raw = [/^[^:]+:\/\/[^:@/]*:([^@]*)@/.exec(urlText)?.[1], /[?&]password=([^&#]*)/.exec(urlText)?.[1]];
  const known = [...written, ...raw.filter((form) => form !== undefined)];
  return [...new Set(known.flatMap((form) => [form, ...formsOf(decoded(form))]))].filter((form) => form !== '');
}

/** A password as it stands, and as it stands in URLs, which do not encode the same characters everywhere. */
export function formsOf(password: string): string[] {
  const url = new URL('postgres://user@host/');
  url.password = password;
  const inUserPart = url.password;
  url.password = encodeURIComponent(password);
  const query = new URLSearchParams({ password }).toString().slice('password='.length);
  return [password, encodeURIComponent(password), inUserPart, url.password, query];
}

/** Checks the URL of every host and gives the first. */
function parseUrls(raw: unknown, schemes: string[], example: string): Parsed<URL> {
  if (typeof raw !== 'string') return { problem: 'is not a text', mend: `write it like ${example}` };
  const [first, ...others] = hostUrls(raw);
  const parsed = parseUrl(first, schemes, example);
  if (!('value' in parsed)) return parsed;
  for (const url of others) {
    const other = parseUrl(url, schemes, example);
    if (!('value' in other)) return other;
    if (other.value.host === '' || parsed.value.host === '') {
      return { problem: 'has a comma without a host', mend: 'separate the hosts by one comma each' };
    }
  }
  return parsed;
}

function parseUrl(raw: string, schemes: string[], example: string): Parsed<URL> {
  // Why: the error of new URL() holds the whole string, password included, so it is never made.
  if (!URL.canParse(raw.trim())) {
    return { problem: 'is not a valid URL', mend: `write it like ${example}, and ${ENCODE_MEND}` };
  }
  const parsed = new URL(raw.trim());
  if (raw !== raw.trim()) return { problem: 'begins or ends with white space', mend: 'take it away' };
  if (!schemes.includes(parsed.protocol)) {
    const names = schemes.map((scheme) => `${scheme}//`).join(' or ');
    return { problem: `does not begin with ${names}`, mend: `write it like ${example}` };
  }
  const straySign = parsed.username === '' && /@/.test(parsed.pathname + parsed.search);
  if (parsed.hash !== '' || straySign || parsed.pathname.includes('@')) {
    return { problem: 'is cut at a special character', mend: ENCODE_MEND };
  }
  try {
    decodeURIComponent(parsed.username + parsed.password + parsed.pathname);
  } catch {
    return { problem: 'has a % that encodes nothing', mend: 'write a % itself as %25' };
  }
  return { value: parsed };
}

function databaseName(parsed: URL): string {
  return decodeURIComponent(parsed.pathname.slice(1));
}

function decoded(form: string): string {
  try {
    return decodeURIComponent(form);
  } catch {
    return form;
  }
}

function safeName(name: string): string {
  return name.replace(/[^A-Za-z0-9_]/g, '').slice(0, 24);
}

import type { Parsed } from './quantities.js';

const ENCODE_MEND = 'percent-encode special characters of the password (@ is %40, # is %23, / is %2F, ? is %3F)';

const SEVERAL_HOSTS = { problem: 'lists several hosts', mend: 'give one host; several are not supported yet' };

/** Checks a PostgreSQL URL; encryption is never taken from it, because sslmode words change their meaning. */
export function checkDatabaseUrl(raw: unknown): Parsed<string> {
  const example = 'postgres://user:password@host:5432/database';
  const parsed = parseUrl(raw, ['postgres:', 'postgresql:'], example);
  if (!('value' in parsed)) return parsed;
  for (const name of parsed.value.searchParams.keys()) {
    if (name === 'ssl' || name.startsWith('ssl') || name === 'uselibpqcompat') {
      return { problem: `carries the parameter "${name}"`, mend: 'take it out and set database.tls.mode instead' };
    }
  }
  if (databaseName(parsed.value) === '') return { problem: 'names no database', mend: `write it like ${example}` };
  return { value: raw as string };
}

/** Checks a RabbitMQ URL; heartbeat and the rest have keys of their own, so it takes no parameters. */
export function checkBrokerUrl(raw: unknown): Parsed<string> {
  const parsed = parseUrl(raw, ['amqp:', 'amqps:'], 'amqps://user:password@host:5671/vhost');
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

/** Whether the connection stays on this machine: a loopback address or a Unix socket. */
export function staysLocal(urlText: string): boolean {
  const parsed = new URL(urlText);
  const host = decodeURIComponent(parsed.searchParams.get('host') ?? parsed.hostname);
  return (
    host === '' ||
    host.startsWith('/') ||
    host === 'localhost' ||
    host === '[::1]' ||
    host === '::1' ||
    /^127(\.\d{1,3}){3}$/.test(host)
  );
}

/** Every form in which the password of a URL may turn up in a text: as written and decoded. */
export function passwordsIn(urlText: string): string[] {
  if (!URL.canParse(urlText)) return [];
  const parsed = new URL(urlText);
  const written = [parsed.password, parsed.searchParams.get('password') ?? ''];
  const raw = /^[^:]+:\/\/[^:@/]*:([^@]*)@/.exec(urlText)?.[1];
  if (raw !== undefined) written.push(raw);
  const forms = new Set(written.flatMap((form) => [form, decoded(form), encodeURIComponent(decoded(form))]));
  forms.delete('');
  return [...forms];
}

function parseUrl(raw: unknown, schemes: string[], example: string): Parsed<URL> {
  if (typeof raw !== 'string') return { problem: 'is not a text', mend: `write it like ${example}` };
  // Why: the error of new URL() holds the whole string, password included, so it is never made.
  if (!URL.canParse(raw.trim())) {
    if (/@[^/]*,/.test(raw)) return SEVERAL_HOSTS;
    return { problem: 'is not a valid URL', mend: `write it like ${example}, and ${ENCODE_MEND}` };
  }
  const parsed = new URL(raw.trim());
  if (raw !== raw.trim()) return { problem: 'begins or ends with white space', mend: 'take it away' };
  if (!schemes.includes(parsed.protocol)) {
    const names = schemes.map((scheme) => `${scheme}//`).join(' or ');
    return { problem: `does not begin with ${names}`, mend: `write it like ${example}` };
  }
  if (parsed.hostname.includes(',')) return SEVERAL_HOSTS;
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

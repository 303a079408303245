import type { z } from 'zod';
import { forbiddenAs, parseAddress, parseNetwork } from '../core/address.js';
import { allowList, isLoopbackHost, mayResolve, refusal } from '../core/target.js';
import { duration, filePath, integer, list, optionalRate, url } from './leaves.js';
import type { ConfigProblem } from './problems.js';
import type { Parsed } from './quantities.js';
import { resolveTls, tls } from './tls.js';

const URL_EXAMPLE = 'http://127.0.0.1:8080/events';
/** A host name; one that ends in a number would be read as an address. */
const NAME = /^(?=.{1,253}$)(?!(.*\.)?\d+$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$/i;

/** The keys of `handler` where its kind is `http`. */
export const httpHandlerKeys = {
  url: url(checkHandlerUrl, {
    values: URL_EXAMPLE,
    doc: 'Where each message is posted. On this machine, or a host of `allow`; off this machine https://, or `tls.mode: insecure-plaintext`.',
  }),
  timeout: duration(
    '10s',
    { min: '100ms', max: '10m' },
    'For one attempt, from connecting to the end of the answer; then it is tried again.',
  ),
  concurrency: integer(8, 1, 1_000, 'Most requests at once, and most connections kept open.'),
  rate: optionalRate({ without: 'as fast as it answers' }, 'Most requests in a time.'),
  secretFile: filePath(
    'Signs each request as Standard Webhooks say: `whsec_` and base64, one a line; with several, all of them sign. Read at each attempt.',
  ),
  allow: list(checkAllowed, {
    values: '["billing.internal", "10.1.0.0/16"]',
    doc: 'Where the handler may be besides this machine: hosts by name, and networks. With networks, its address must be in one of them. Link-local and metadata addresses are never called.',
  }),
  retryAfterCap: duration(
    '1h',
    { min: '1s', max: '7d' },
    'The longest delay that an answer may ask for by `Retry-After`.',
  ),
  tls: tls.prefault({}),
};

type Given = { [K in keyof typeof httpHandlerKeys]: z.output<(typeof httpHandlerKeys)[K]> };

/** The settings with their units: what the handler is made from. */
export type HttpHandlerConfig = ReturnType<typeof toHttpHandler>;

export function toHttpHandler(given: Given) {
  const { timeout, retryAfterCap, tls: protection, ...rest } = given;
  const encrypted = given.url.startsWith('https:');
  return {
    kind: 'http' as const,
    ...rest,
    timeoutMs: timeout,
    retryAfterCapMs: retryAfterCap,
    tls: resolveTls(protection, encrypted ? 'verify-full' : 'insecure-plaintext'),
  };
}

/** What only shows when the keys are looked at together; `at` is the place of the handler, such as `consumers.emails.handler`. */
export function checkHttpHandler(given: Given, at: string): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const { protocol, hostname } = new URL(given.url);
  const isLocal = isLoopbackHost(hostname);
  const encrypted = protocol === 'https:';
  const literal = parseAddress(hostname);
  const allow = allowList(given.allow);
  if (literal ? refusal(hostname, literal, allow) !== undefined : !mayResolve(hostname, allow)) {
    problems.push({
      at: `${at}.url`,
      problem: 'is on another machine, which is not in the allow-list',
      mend: `add its host or network to ${at}.allow`,
    });
  }
  if (!encrypted && !isLocal && given.tls.mode !== 'insecure-plaintext') {
    problems.push({
      at: `${at}.url`,
      problem: 'is http://, which sends every message readable over the network',
      mend: `use https://, or accept it with ${at}.tls.mode: insecure-plaintext`,
    });
  }
  if (encrypted && given.tls.mode === 'insecure-plaintext') {
    problems.push({
      at: `${at}.tls.mode`,
      problem: `contradicts ${at}.url, which is https://`,
      mend: 'take one of them back',
    });
  }
  if ((given.tls.certFile === undefined) !== (given.tls.keyFile === undefined)) {
    problems.push({
      at: `${at}.tls`,
      problem: 'has only one of certFile and keyFile',
      mend: 'give both, or neither',
    });
  }
  return problems;
}

/** A URL of a handler: no credentials, which belong into a file, and a host that reads the same to everybody. */
function checkHandlerUrl(raw: unknown): Parsed<string> {
  const mend = `write it like ${URL_EXAMPLE}`;
  if (typeof raw !== 'string' || !URL.canParse(raw)) return { problem: 'is not a URL', mend };
  const parsed = new URL(raw);
  if (parsed.protocol !== 'http:' && parsed.protocol !== 'https:') {
    return { problem: 'is neither http:// nor https://', mend };
  }
  if (parsed.username !== '' || parsed.password !== '') {
    return { problem: 'carries credentials', mend: 'take them out; sign the requests with secretFile' };
  }
  if (parsed.hash !== '') return { problem: 'has a part after #, which is never sent', mend: 'take it out' };
  const written = /^https?:\/\/([^/?#]*)/i.exec(raw)?.[1]?.replace(/:\d*$/, '').toLowerCase();
  const literal = parseAddress(parsed.hostname);
  if (written !== parsed.hostname) {
    return { problem: 'has a host that is not written plainly', mend: `write it as ${parsed.hostname}` };
  }
  const forbidden = literal && forbiddenAs(literal);
  if (forbidden !== undefined) {
    return { problem: `leads to an address that is ${forbidden}`, mend: 'give the address of the handler itself' };
  }
  return { value: raw };
}

function checkAllowed(raw: unknown): Parsed<string> {
  const mend = 'write a host such as "billing.internal", an address, or a network such as "10.1.0.0/16"';
  if (typeof raw !== 'string') return { problem: 'has an entry that is not a text', mend };
  if (parseNetwork(raw) || NAME.test(raw)) return { value: raw };
  return { problem: 'has an entry that is neither a host nor a network', mend };
}

import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { isIP } from 'node:net';

/** Why a request is not answered: status code and a text for its sender. */
export interface Refusal {
  status: 400 | 401 | 403 | 405 | 413 | 503;
  text: string;
}

interface Request {
  method?: string | undefined;
  headers: IncomingHttpHeaders;
}

/**
 * Whether a request may be answered at all. The Host must be an IP address, localhost or a configured name: a page whose
 * own name was made to point here by DNS shows that name (rebinding). Pages of other origins are refused, whatever they
 * ask; requests with a body, too, because none here needs one.
 */
export function refusalOf({ method, headers }: Request, hostNames: ReadonlySet<string>): Refusal | undefined {
  if (method !== 'GET' && method !== 'HEAD') return { status: 405, text: 'only GET and HEAD' };
  const host = nameOf(headers.host);
  if (host === undefined) return { status: 400, text: 'no usable Host header' };
  if (isIP(host) === 0 && host !== 'localhost' && !hostNames.has(host)) {
    return { status: 403, text: 'this host name is not in admin.hostNames' };
  }
  const { origin } = headers;
  if (origin !== undefined && origin.toLowerCase() !== `http://${headers.host?.toLowerCase() ?? ''}`) {
    return { status: 403, text: 'no requests from other origins' };
  }
  const site = headers['sec-fetch-site'];
  if (site !== undefined && site !== 'none' && site !== 'same-origin') {
    return { status: 403, text: 'no requests from other sites' };
  }
  if (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) !== 0) {
    return { status: 413, text: 'no request here has a body' };
  }
  return undefined;
}

/** The name or address of a Host header, without port and brackets, in lower case. */
function nameOf(host: string | undefined): string | undefined {
  const [, bracketed, plain] = /^(?:\[([0-9a-f:.]+)\]|([^:[\]@/?#\\\s]+))(?::\d{1,5})?$/i.exec(host ?? '') ?? [];
  const name = bracketed ?? plain;
  return name?.toLowerCase().replace(/\.$/, '');
}

/** Whether the request carries the token. In constant time: hashes of equal length are compared, not the texts. */
export function carriesToken({ headers }: Request, token: string): boolean {
  const [, given] = /^Bearer ([\x21-\x7e]+)$/i.exec(headers.authorization ?? '') ?? [];
  const matches = timingSafeEqual(digest(given ?? ''), digest(token));
  return given !== undefined && matches;
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

import type { Verdict } from './verdict.js';

/** What is known of an answer. */
export interface HttpAnswer {
  status: number;
  /** The beginning of the body, printable; empty when there is none. */
  text: string;
  /** From Retry-After, already capped. */
  retryInMs: number | undefined;
}

/** Why there is no answer, or only a part of one. */
export type HttpFailure =
  /** No connection, so nothing of the message was sent: refused, unknown host, certificate, forbidden address. */
  | { kind: 'unreachable'; error: string }
  /** The connection ended after something of the message was sent. */
  | { kind: 'interrupted'; error: string }
  /** No whole answer in time. */
  | { kind: 'timeout'; error: string }
  /** Something answered that does not speak HTTP. */
  | { kind: 'not-http'; error: string };

/** Said by whoever stands before the handler, or by one who is not the handler: nothing of the message is meant. */
const WRONG_PLACE = new Set([401, 403, 404, 405, 407, 421, 426]);
/** 409 is the answer to an Idempotency-Key whose first attempt is still under way. */
const TEMPORARY = new Set([408, 409, 429]);
const NOT_YET = 425;

/**
 * The verdict of a whole answer (design 4.3).
 *
 *   2xx                                  done, the text is the result
 *   408, 409, 429, 5xx                   retry, Retry-After honoured
 *   425                                  not yet
 *   3xx, 401, 403, 404, 405, 407, 421, 426   broken: a wrong URL, a missing right or a deployment, not the message
 *   other 4xx, among them 410 and 422    never
 */
export function verdictOfAnswer({ status, text, retryInMs }: HttpAnswer): Verdict {
  if (status >= 200 && status < 300) return text === '' ? { kind: 'done' } : { kind: 'done', result: text };
  const error = `HTTP ${status}${text === '' ? '' : `: ${text}`}`;
  const delay = retryInMs === undefined ? {} : { retryInMs };
  if (status === NOT_YET) return { kind: 'not-yet', error, ...delay };
  if (TEMPORARY.has(status) || (status >= 500 && status < 600)) return { kind: 'retry', error, ...delay };
  if (status >= 400 && status < 500 && !WRONG_PLACE.has(status)) return { kind: 'never', error };
  return { kind: 'broken', error };
}

/** The verdict where an answer is missing: only what was sent can have failed for the message's sake. */
export function verdictOfFailure({ kind, error }: HttpFailure): Verdict {
  return kind === 'unreachable' || kind === 'not-http' ? { kind: 'broken', error } : { kind: 'retry', error };
}

/** The first `maxCharacters` of a text from elsewhere, in one line, without control characters. */
export function printable(bytes: Buffer, maxCharacters: number): string {
  const text = bytes
    .toString('utf8')
    // Cc and Cf: control characters, and those that reorder or hide what a terminal shows.
    .replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\s]+/gu, ' ')
    .trim();
  const characters = Array.from(text.slice(0, maxCharacters * 2 + 1));
  return characters.length > maxCharacters
    ? `${characters.slice(0, maxCharacters - 1).join('')}…`
    : characters.join('');
}

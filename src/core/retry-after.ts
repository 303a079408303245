const HTTP_DATE = /^[A-Z][a-z]{2,8},? .*\d\d:\d\d:\d\d( GMT| \d{4})$/;

/**
 * The delay that a Retry-After header asks for (RFC 9110, 10.2.3: seconds, or a date), at most `capMs`; undefined when
 * there is none, it makes no sense, or it is over. A date is compared with the answer's own Date header where there is one,
 * so that neither clock needs to be right (F118).
 */
export function retryAfterMs(
  header: string | undefined,
  { date, unixMs, capMs }: { date: string | undefined; unixMs: number; capMs: number },
): number | undefined {
  const text = header?.trim() ?? '';
  const delayMs = /^\d+$/.test(text)
    ? Number(text) * 1_000
    : (httpDateMs(text) ?? NaN) - (httpDateMs(date ?? '') ?? unixMs);
  return delayMs > 0 ? Math.min(delayMs, capMs) : undefined;
}

function httpDateMs(text: string): number | undefined {
  if (!HTTP_DATE.test(text)) return undefined;
  // The oldest of the three forms, asctime, names no zone and means UTC like the others.
  const parsed = Date.parse(text.endsWith('GMT') ? text : `${text} GMT`);
  return Number.isNaN(parsed) ? undefined : parsed;
}

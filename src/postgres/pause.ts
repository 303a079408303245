/** Of a row `p` of the consumers: an operator has paused it, or a breaker has said lately that its handler is broken. */
export const IS_PAUSED = "(p.paused_by = 'operator' or p.paused_until > clock_timestamp())";

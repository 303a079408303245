/**
 * A message that cannot go out as it is: a value, not a throw. The text goes to the row's last_error, so it names what is
 * wrong and never quotes a body.
 */
export interface Fault {
  fault:
    | 'too_large'
    | 'name_too_long'
    | 'bad_property'
    | 'bad_header'
    | 'reserved_header'
    | 'exchange_missing'
    | 'refused_by_broker'
    | 'unroutable';
  text: string;
}

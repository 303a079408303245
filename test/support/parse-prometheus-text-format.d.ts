declare module 'parse-prometheus-text-format' {
  /** One family as the parser gives it. */
  interface Family {
    name: string;
    help: string;
    type: string;
    metrics: {
      value?: string;
      labels?: Record<string, string>;
      buckets?: Record<string, string>;
    }[];
  }
  export default function parsePrometheusTextFormat(text: string): Family[];
}

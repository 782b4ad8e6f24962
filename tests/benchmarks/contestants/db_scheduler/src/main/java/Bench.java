import com.github.kagkarlsson.scheduler.Scheduler;
import com.github.kagkarlsson.scheduler.SchedulerBuilder;
import com.github.kagkarlsson.scheduler.SchedulerClient;
import com.github.kagkarlsson.scheduler.task.TaskDescriptor;
import com.github.kagkarlsson.scheduler.task.TaskInstance;
import com.github.kagkarlsson.scheduler.task.helper.OneTimeTask;
import com.github.kagkarlsson.scheduler.task.helper.Tasks;
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.Serializable;
import java.net.URI;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.SQLException;
import java.sql.Statement;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.Collectors;

/** The benchmark's program for db-scheduler; see contestant.py for the verbs. */
public final class Bench {
  record Parameters(int n, double sleepMs, long at) implements Serializable {
    private static final long serialVersionUID = 1L;
  }

  /** One setting: threads 0 sets nothing, otherwise the limits of lock-and-fetch are fractions of the threads. */
  record Setting(int threads, double lower, double upper) {
    static Setting named(String name) {
      return switch (name) {
        case "20 threads" -> new Setting(20, 4.0, 20.0);
        case "50 threads" -> new Setting(50, 0.5, 4.0);
        case "100 threads" -> new Setting(100, 2.0, 6.0);
        case "default" -> new Setting(0, 0, 0);
        default -> throw new IllegalArgumentException("unknown setting " + name);
      };
    }

    boolean tuned() {
      return threads > 0;
    }
  }

  private static final TaskDescriptor<Parameters> BENCH = TaskDescriptor.of("bench", Parameters.class);

  // The table as the library's documentation defines it, without the column and index of its optional priorities.
  private static final String SCHEMA =
      """
      create table scheduled_tasks (
        task_name text not null,
        task_instance text not null,
        task_data bytea,
        execution_time timestamp with time zone not null,
        picked boolean not null,
        picked_by text,
        last_success timestamp with time zone,
        last_failure timestamp with time zone,
        consecutive_failures int,
        last_heartbeat timestamp with time zone,
        version bigint not null,
        primary key (task_name, task_instance)
      );
      create index execution_time_idx on scheduled_tasks (execution_time);
      create index last_heartbeat_idx on scheduled_tasks (last_heartbeat);
      """;

  private final Setting setting = Setting.named(System.getenv("BENCH_SETTING"));
  private final String stamp = System.getenv().getOrDefault("BENCH_STAMP", "none");
  private final OutputStream output = System.out;
  private final String process = UUID.randomUUID().toString();
  private final AtomicLong scheduled = new AtomicLong();
  private final AtomicLong ran = new AtomicLong();
  private final AtomicLong first = new AtomicLong();
  private final List<Long> latencies = new ArrayList<>();
  private long told = 0;

  private void say(String format, Object... facts) {
    byte[] line = (String.format(format, facts) + "\n").getBytes(StandardCharsets.US_ASCII);
    synchronized (output) {
      try {
        output.write(line);
        output.flush();
      } catch (IOException error) {
        throw new IllegalStateException(error);
      }
    }
  }

  private HikariDataSource dataSource() {
    URI dsn = URI.create(System.getenv("BENCH_DSN"));
    HikariConfig config = new HikariConfig();
    config.setJdbcUrl(
        "jdbc:postgresql://" + dsn.getHost() + ":" + (dsn.getPort() < 0 ? 5432 : dsn.getPort()) + dsn.getRawPath());
    if (dsn.getRawUserInfo() != null) {
      String[] user = dsn.getRawUserInfo().split(":", 2);
      config.setUsername(URLDecoder.decode(user[0], StandardCharsets.UTF_8));
      if (user.length > 1) {
        config.setPassword(URLDecoder.decode(user[1], StandardCharsets.UTF_8));
      }
    }
    if (setting.tuned()) {
      config.addDataSourceProperty("reWriteBatchedInserts", "true");
    }
    return new HikariDataSource(config);
  }

  private SchedulerClient client(HikariDataSource dataSource) throws SQLException {
    SchedulerClient client = SchedulerClient.Builder.create(dataSource, task()).build();
    try (Connection connection = dataSource.getConnection()) {
      connection.isValid(5);
    }
    return client;
  }

  private OneTimeTask<Parameters> task() {
    return Tasks.oneTime(BENCH).execute((instance, context) -> run(instance.getData()));
  }

  private void run(Parameters job) {
    long start = System.nanoTime();
    if (job.sleepMs() > 0) {
      try {
        TimeUnit.NANOSECONDS.sleep((long) (job.sleepMs() * 1e6));
      } catch (InterruptedException error) {
        throw new IllegalStateException(error);
      }
    }
    if (stamp.equals("each")) {
      say("{\"start\": %d, \"n\": %d}", start, job.n());
    } else if (stamp.equals("latency")) {
      synchronized (latencies) {
        latencies.add((start - job.at()) / 1000);
      }
    }
    first.compareAndSet(0, start);
    ran.incrementAndGet();
  }

  private TaskInstance<Parameters> instance(int n, double sleepMs, long at) {
    return BENCH.instance(process + "-" + scheduled.getAndIncrement()).data(new Parameters(n, sleepMs, at)).build();
  }

  private void scheduleMany(SchedulerClient client, int from, int count, double sleepMs) {
    long at = System.nanoTime();
    List<TaskInstance<?>> instances = new ArrayList<>(count);
    for (int i = 0; i < count; i++) {
      instances.add(instance(from + i, sleepMs, at));
    }
    client.scheduleBatch(instances, Instant.now());
  }

  private void scheduleOne(SchedulerClient client, int n, double sleepMs) {
    client.schedule(instance(n, sleepMs, System.nanoTime()), Instant.now());
  }

  private void prepare() throws SQLException {
    try (HikariDataSource dataSource = dataSource();
        Connection connection = dataSource.getConnection();
        Statement statement = connection.createStatement()) {
      statement.execute(SCHEMA);
    }
  }

  private void enqueue(String mode, int count, double sleepMs) throws SQLException {
    try (HikariDataSource dataSource = dataSource()) {
      SchedulerClient client = client(dataSource);
      long begin = System.nanoTime();
      if (mode.equals("bulk")) {
        scheduleMany(client, 0, count, sleepMs);
      } else {
        for (int n = 0; n < count; n++) {
          scheduleOne(client, n, sleepMs);
        }
      }
      say("{\"enqueued\": %d, \"seconds\": %.6f}", count, (System.nanoTime() - begin) / 1e9);
    }
  }

  private void produce() throws SQLException, IOException {
    try (HikariDataSource dataSource = dataSource()) {
      SchedulerClient client = client(dataSource);
      BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
      say("{\"ready\": %d}", System.nanoTime());
      int n = 0;
      for (String line = input.readLine(); line != null; line = input.readLine()) {
        int count = Integer.parseInt(line.trim());
        if (count == 1) {
          scheduleOne(client, n, 0);
        } else {
          scheduleMany(client, n, count, 0);
        }
        say("{\"committed\": %d}", System.nanoTime());
        n += count;
      }
    }
  }

  private synchronized void report() {
    long now = ran.get();
    if (now != told) {
      told = now;
      say("{\"ran\": %d, \"first\": %d}", now, first.get());
    }
  }

  private void work() throws InterruptedException {
    CountDownLatch ended = new CountDownLatch(1);
    CountDownLatch stopped = new CountDownLatch(1);
    Thread input =
        new Thread(
            () -> {
              try {
                System.in.transferTo(OutputStream.nullOutputStream());
              } catch (IOException error) {
                // the end of the input all the same
              }
              ended.countDown();
            });
    input.setDaemon(true);
    input.start();
    Thread terminated =
        new Thread(
            () -> {
              ended.countDown();
              try {
                stopped.await(60, TimeUnit.SECONDS);
              } catch (InterruptedException error) {
                // the process is about to end
              }
            });
    Runtime.getRuntime().addShutdownHook(terminated);

    try (HikariDataSource dataSource = dataSource()) {
      SchedulerBuilder builder = Scheduler.create(dataSource, task());
      if (setting.tuned()) {
        builder
            .threads(setting.threads())
            .pollUsingLockAndFetch(setting.lower(), setting.upper())
            .pollingInterval(Duration.ofSeconds(1));
      }
      Scheduler scheduler = builder.build();
      scheduler.start();
      say("{\"ready\": %d}", System.nanoTime());
      while (!ended.await(20, TimeUnit.MILLISECONDS)) {
        report();
      }
      scheduler.stop();
      report();
    }
    if (stamp.equals("latency")) {
      say("{\"latencies_us\": [%s]}", latencies.stream().map(String::valueOf).collect(Collectors.joining(", ")));
    }
    say("{\"stopped\": %d}", System.nanoTime());
    stopped.countDown();
  }

  public static void main(String[] arguments) throws Exception {
    Bench bench = new Bench();
    String verb = arguments.length > 0 ? arguments[0] : "";
    switch (verb) {
      case "prepare" -> bench.prepare();
      case "enqueue" ->
          bench.enqueue(arguments[1], Integer.parseInt(arguments[2]), Double.parseDouble(arguments[3]));
      case "produce" -> bench.produce();
      case "work" -> bench.work();
      default -> throw new IllegalArgumentException("unknown verb " + verb);
    }
  }
}

-- One transaction of W12, for pgbench.
call bench.block(nextval('bench.block'));

-- Removes consumers that hold nothing: removing one that does would lose its entries.
-- KEYS: stream
-- ARGV: group, consumers…
local stream, group = KEYS[1], ARGV[1]
for i = 2, #ARGV do
  local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1, ARGV[i])
  if not pending.err and #pending == 0 then
    redis.pcall('XGROUP', 'DELCONSUMER', stream, group, ARGV[i])
  end
end
return 1

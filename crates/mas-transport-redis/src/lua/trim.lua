-- Records from where on each group may have something unsettled, and removes what lies before that
-- of every group.
-- KEYS: stream, the topic's set of groups
-- ARGV: the prefix of marker groups, the prefix of the groups' hashes
-- Answers how many entries were removed.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return trim(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
